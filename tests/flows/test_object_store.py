"""The program on an S3 server: input from it, a result to it, the same command again, and the audit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.data.stores.faulty_store import start_server
from tests.flows.conftest import Overnight, messages

BUCKET = "nights"
SECRET = "sentinel9secret9key"
URL = f"s3://{BUCKET}/answers"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of an S3 server."""
    running, port = start_server()
    yield f"http://127.0.0.1:{port}"
    running.stop()


@pytest.fixture
def environment(environment: dict[str, str], server: str) -> dict[str, str]:
    """What a user sets for a store that is not Amazon's."""
    keys = {"AWS_ACCESS_KEY_ID": "nightly", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    return {**environment, **keys, "AWS_ENDPOINT_URL": server, "AWS_EC2_METADATA_DISABLED": "true"}


def objects(client: Any) -> dict[str, Any]:
    """Name to ETag and time of the last change."""
    found = client.list_objects_v2(Bucket=BUCKET, Prefix="answers/").get("Contents", [])
    return {entry["Key"].removeprefix("answers/"): (entry["ETag"], entry["LastModified"]) for entry in found}


def test_a_night_on_an_object_store(overnight: Overnight, server: str, tmp_path: Path) -> None:
    client = boto3.client(
        "s3", endpoint_url=server, aws_access_key_id="x", aws_secret_access_key="x", region_name="us-east-1"
    )
    client.create_bucket(Bucket=BUCKET)
    lines = [json.dumps(row) for row in messages(20)] + ['{"id": 20, "text": ']
    client.put_object(Bucket=BUCKET, Key="in/rows.jsonl", Body="\n".join(lines).encode())
    command = ["infer", "--input", f"s3://{BUCKET}/in", "--output", URL, "--set", "output.error_budget=0.1"]

    done = overnight(*command)
    assert done.returncode == 0
    assert f"{URL}/_manifest.json" in done.stdout.replace("\n", "")
    manifest = json.loads(client.get_object(Bucket=BUCKET, Key="answers/_manifest.json")["Body"].read())
    assert (manifest["rows"], manifest["ok"], manifest["errors"]) == (21, 20, {"truncated_line": 1})
    published = objects(client)
    assert set(published) == {"_manifest.json", *(part["name"] for part in manifest["files"])}
    (run,) = (tmp_path / ".overnight").iterdir()
    assert not list((run / "shards").iterdir()), "the only copy is the published one"

    again = overnight(*command, timeout=60)
    assert again.returncode == 0
    assert "verified" in again.stdout
    assert objects(client) == published
    audited = overnight("audit", URL)
    assert audited.returncode == 0
    assert "21" in audited.stdout

    name = manifest["files"][0]["name"]
    content = client.get_object(Bucket=BUCKET, Key=f"answers/{name}")["Body"].read()
    client.put_object(Bucket=BUCKET, Key=f"answers/{name}", Body=content[:-1] + bytes([content[-1] ^ 1]))
    for failed in (overnight("audit", URL), overnight(*command, timeout=60)):
        assert failed.returncode == 1
        assert name in (failed.stdout + failed.stderr).replace("\n", "")
    assert set(objects(client)) == set(published)

    shown = "".join(one.stdout + one.stderr for one in (done, again, audited))
    assert SECRET not in shown
    files = [path for path in (tmp_path / ".overnight").rglob("*") if path.is_file()]
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
