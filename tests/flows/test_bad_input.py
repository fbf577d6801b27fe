"""Bad input as a user meets it: one line and status 2 for a file, an error row for a row, no text in logs."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from tests.flows.conftest import Overnight
from tests.tasks.bad_inputs import LINE, Bad, content, fifo, link_to_itself

SECRET = "SECRET"


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (fifo, "x.jsonl is not a regular file or folder"),
        (link_to_itself, "x.jsonl"),
        (content("x.jsonl.gz", gzip.compress(LINE * 20_000)[:-9]), "x.jsonl.gz is truncated: the gzip data ends early"),
        (content("x.gz", gzip.compress(LINE[:-1] + b" " * (300 << 20) + b"\n")), "taken for a decompression bomb"),
        (content("a\n\x1b[31m.parquet", LINE), r"a\n\x1b[31m.parquet is named Parquet but its content is not"),
    ],
    ids=["fifo", "link", "truncated", "bomb", "parquet"],
)
def test_a_file_that_cannot_be_input_starts_nothing(
    overnight: Overnight, tmp_path: Path, write: Bad, words: str
) -> None:
    done = overnight("infer", "--input", write(tmp_path), "--output", "out", timeout=60)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("overnight: ")]
    assert words in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / ".overnight").exists()


def test_bad_rows_are_error_rows_and_their_text_is_nowhere_else(overnight: Overnight, tmp_path: Path) -> None:
    source = tmp_path / "x.jsonl"
    lines = {
        "": b'{"text": "Where is my parcel?"}',
        "invalid_json": b'{"text": SECRET}',
        "invalid_utf8": b'{"text": "SECRET\xff"}',
        "duplicate_key": b'{"text": "SECRET", "text": "SECRET"}',
        "not_an_object": b'["SECRET"]',
        "blank_prompt": b'{"text": " ", "note": "SECRET"}',
        "prompt_too_long": b'{"text": "' + b"SECRET " * 3000 + b'"}',
        "truncated_line": b'{"text": "SECRE',
    }
    source.write_bytes(b"\n".join(lines.values()))
    arguments = ["--input", source, "--output", "out.jsonl", "--set", "output.error_budget=1"]
    plan = overnight("plan", *arguments, "--config", tmp_path / "config.toml")
    assert plan.returncode == 0
    assert [code for code in lines if code not in plan.stdout] == []
    done = overnight("infer", *arguments)
    assert done.returncode == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert [(row["error"] or {"code": ""})["code"] for row in rows] == list(lines)
    assert [row["status"] for row in rows] == ["ok"] + ["error"] * 7
    assert not any(SECRET in (row["error"] or {"message": ""})["message"] for row in rows)
    for text in (plan.stdout, plan.stderr, done.stdout, done.stderr):
        assert SECRET not in text
    for folder, _, names in os.walk(tmp_path / ".overnight"):
        for name in names:
            assert SECRET.encode() not in (Path(folder) / name).read_bytes(), name
