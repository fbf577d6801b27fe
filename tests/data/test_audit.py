"""An audit finds every way in which bytes and manifest can disagree, and reports instead of raising."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from data.audit import audit
from data.durable import digest_file
from data.errors import RunError
from data.manifest import Manifest, PartFile
from data.publish import published, verify_published
from data.settings import OutputSettings

ROWS = [{"id": number, "text": f"text {number}" if number % 40 else ""} for number in range(100)]


@pytest.fixture(params=["out", "out.parquet", "out.jsonl"])
def result(request: pytest.FixtureRequest, lab: Callable[..., Any]) -> Path:
    made = lab(ROWS)
    made.output = OutputSettings(path=str(made.root / request.param), error_budget=1)
    made.compute()
    made.publish()
    return made.target


def part_of(result: Path) -> Path:
    return result / "part-00000.parquet" if result.is_dir() else result


def manifest_of(result: Path) -> Path:
    return result / "_manifest.json" if result.is_dir() else result.with_name(f"_{result.name}.manifest.json")


def test_a_result_is_valid_wherever_it_is_copied_to(result: Path) -> None:
    report = audit(result)
    assert report.valid
    assert (report.rows, report.ok, report.errors, report.complete) == (100, 97, {"blank_prompt": 3}, True)


def test_every_flipped_bit_is_found(result: Path) -> None:
    for path in (part_of(result), manifest_of(result)):
        content = path.read_bytes()
        for position in range(0, len(content), len(content) // 60):
            path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
            report = audit(result)
            assert not report.valid
            assert all("\n" not in problem for problem in report.problems)
            with pytest.raises(RunError):
                verify_published(result)
        path.write_bytes(content)
    assert audit(result).valid


def test_missing_and_additional_files_are_found(result: Path) -> None:
    part_of(result).rename(result.parent / "away")
    report = audit(result)
    assert "missing" in report.problems[0]
    assert (report.files, report.counted) == (1, 0)
    (result.parent / "away").rename(part_of(result))
    if result.is_dir():
        (result / "part-00001.parquet").write_bytes(b"x")
        assert audit(result).problems == [f"{result}/part-00001.parquet is not in the manifest"]
        (result / "part-00001.parquet").unlink()
        (result / "_notes.txt").write_text("what begins with _ is nobody's row")
        assert audit(result).valid
    manifest_of(result).unlink()
    assert audit(result).problems == [f"{result} has no manifest, so it is no published result"]
    assert published(result) is None


def forged(result: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the rows and make the manifest's digest fit, so that only the rows themselves can tell."""
    part, path = part_of(result), manifest_of(result)
    if part.suffix == ".parquet":
        table = change(pq.read_table(part))
        pq.write_table(table, part)
    else:
        table = change(pa.Table.from_pylist([json.loads(line) for line in part.read_text().splitlines()]))
        part.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    manifest = Manifest.from_bytes(path.read_bytes(), "manifest")
    file = PartFile(part.name, manifest.rows, os.path.getsize(part), digest_file(part))
    path.write_bytes(replace(manifest, files=(file,)).to_bytes())


def set_status(table: pa.Table) -> pa.Table:
    status = pc.if_else(pc.equal(table["id"], 40), "ok", table["status"])
    return table.set_column(table.schema.get_field_index("status"), table.schema.field("status"), status)


@pytest.mark.parametrize(
    ("change", "says"),
    [(set_status, "neither ok nor an error"), (lambda table: table.slice(1), "holds 99 rows")],
)
def test_rows_that_contradict_themselves_or_the_counts_are_found(result: Path, change: Any, says: str) -> None:
    forged(result, change)
    assert any(says in problem for problem in audit(result).problems)


def test_another_schema_is_found(result: Path) -> None:
    if part_of(result).suffix != ".parquet":
        pytest.skip("JSON lines declare no schema")
    forged(result, lambda table: table.drop_columns("finish_reason"))
    assert audit(result).problems[0].endswith("has other columns than the manifest says")


def test_a_manifest_round_trips_with_what_the_caller_added(result: Path) -> None:
    manifest = published(result)
    assert manifest is not None
    changed = replace(manifest, extra={"settings": {"model": "m\u00e9"}, "seconds": 1.5})
    assert Manifest.from_bytes(changed.to_bytes(), "x") == changed
    with pytest.raises(RunError, match="is not a manifest"):
        Manifest.from_bytes(b"[]", "x")


def test_only_files_that_are_as_the_manifest_says_are_counted(lab: Callable[..., Any]) -> None:
    made = lab(ROWS)
    made.output = OutputSettings(path=str(made.root / "out"), error_budget=1)
    made.compute()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.parts.PART_ROWS", 40)
        made.publish()
    assert (audit(made.target).files, audit(made.target).counted) == (3, 3)
    (made.target / "part-00001.parquet").write_bytes(b"x")
    report = audit(made.target)
    assert [problem.partition(" ")[2] for problem in report.problems] == [
        "has 1 bytes, the manifest says "
        + str(next(file["bytes"] for file in json.loads(manifest_of(made.target).read_bytes())["files"][1:]))
    ]
    assert (report.files, report.counted, report.rows, report.ok) == (3, 2, 60, 58)
    assert report.errors == {"blank_prompt": 2}
