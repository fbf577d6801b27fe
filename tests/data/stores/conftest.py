"""Fixtures of an object store: one server for the session, an empty bucket and no faults for each test."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
import s3fs

import data.parts
from data.settings import OutputSettings

from .faulty_store import FaultyStore, start_server
from .store_bench import ROWS, SECRET, Bench


@pytest.fixture(scope="session")
def s3_server() -> Iterator[int]:
    server, port = start_server()
    yield port
    server.stop()


@pytest.fixture
def bench(s3_server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    store = FaultyStore(s3_server)
    environment = {
        "AWS_ENDPOINT_URL": store.url,
        "AWS_ACCESS_KEY_ID": "AKIDSENTINEL",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "3",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    direct = boto3.session.Session().client("s3", endpoint_url=f"http://127.0.0.1:{s3_server}")
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    direct.create_bucket(Bucket=bucket)
    yield Bench(store, direct, bucket)
    s3fs.S3FileSystem.clear_instance_cache()
    store.stop()


@pytest.fixture
def done(bench: Bench, lab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A computed run whose output is the bucket; its result has three parts."""
    monkeypatch.setattr(data.parts, "PART_ROWS", 100)
    made = lab(ROWS)
    made.output = OutputSettings(path=bench.url, error_budget=0.1)
    made.compute()
    return made
