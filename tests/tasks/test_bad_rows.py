"""What is wrong with a row is published as its error, with code and place and without its text; no other row pays."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.error_codes import Code
from data.plan import plan_windows
from data.publish import publish
from data.results import result_schema
from data.run_folder import RunFolder
from data.shards import read_prompts
from tasks.job import Job
from tasks.planner import plan_options
from tests.tasks.test_bad_input import checked

SECRET = b"SECRET"
GOOD = b'{"text": "good"}'
CHAT = {"prompt": [{"role": "{{ who or 'user' }}", "content": "{{ text }}"}]}

LINES: dict[str, tuple[bytes, Code, str]] = {
    "a blank prompt": (b'{"text": " \\n", "x": "SECRET"}', Code.BLANK_PROMPT, "blank"),
    "a null prompt": (b'{"text": null, "x": "SECRET"}', Code.BLANK_PROMPT, "blank"),
    "a missing key": (b'{"x": "SECRET"}', Code.BLANK_PROMPT, "blank"),
    "invalid JSON": (b'{"text": SECRET}', Code.INVALID_JSON, "line 2 of x.jsonl: Expecting value at character 9"),
    "two objects": (b'{"text": "SECRET"} {}', Code.INVALID_JSON, "line 2 of x.jsonl: Extra data at character 19"),
    "text behind the object": (b'{"text": "SECRET"} x', Code.INVALID_JSON, "line 2 of x.jsonl"),
    "a raw control character": (b'{"text": "SECRET\x01"}', Code.INVALID_JSON, "line 2 of x.jsonl"),
    "a raw NUL": (b'{"text": "SECRET\x00"}', Code.INVALID_JSON, "line 2 of x.jsonl"),
    "invalid UTF-8": (b'{"text": "SECRET\xff"}', Code.INVALID_UTF8, "line 2 of x.jsonl: invalid UTF-8 at byte 16"),
    "an encoded surrogate": (b'{"text": "SECRET\xed\xa0\x80"}', Code.INVALID_UTF8, "at byte 16"),
    "a lone surrogate": (b'{"text": "SECRET\\ud83d"}', Code.INVALID_JSON, "half of a surrogate pair"),
    "a lone surrogate in capitals": (b'{"text": "SECRET\\uD83D"}', Code.INVALID_JSON, "half of a surrogate pair"),
    "a duplicate key": (b'{"text": "SECRET", "text": ""}', Code.DUPLICATE_KEY, "same key twice"),
    "a nested duplicate key": (b'{"text": {"SECRET": 1, "SECRET": 2}}', Code.DUPLICATE_KEY, "same key twice"),
    "NaN": (b'{"text": "SECRET", "x": NaN}', Code.INVALID_JSON, "NaN is not JSON"),
    "infinity": (b'{"text": "SECRET", "x": -Infinity}', Code.INVALID_JSON, "-Infinity is not JSON"),
    "infinity in digits": (b'{"text": "SECRET", "x": 1e999}', Code.INVALID_JSON, "beyond what a float holds"),
    "deep arrays": (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", Code.INVALID_JSON, "deeper than 64 levels"),
    "deep objects": (b'{"text":' * 100_000 + b"1" + b"}" * 100_000, Code.INVALID_JSON, "deeper than 64 levels"),
    "an open bracket for ever": (b"[" * 1_000_000, Code.INVALID_JSON, "deeper than 64 levels"),
    "5,000 digits": (b'{"text": ' + b"9" * 5000 + b"}", Code.INVALID_JSON, "a number has too many digits"),
    "an array": (b'["SECRET"]', Code.NOT_AN_OBJECT, "a JSON array, not an object"),
    "a scalar": (b'"SECRET"', Code.NOT_AN_OBJECT, "a JSON string, not an object"),
    "null": (b"null", Code.NOT_AN_OBJECT, "a JSON null, not an object"),
    "an unknown role": (b'{"text": "SECRET", "who": "SECRET"}', Code.UNKNOWN_ROLE, "none of system, user"),
    "a prompt over the context": (b'{"text": "' + b"SECRET " * 3000 + b'"}', Code.PROMPT_TOO_LONG, "context of 1,024"),
    "a long prompt without spaces": (b'{"text": "' + b"SECRET" * 500_000 + b'"}', Code.PROMPT_TOO_LONG, "of 1,024"),
}
"""By name: the second line of three, the code that it gets, and words of the message."""

IDS: dict[str, tuple[Any, Code, str]] = {
    "null ids": (None, Code.BAD_PROMPT_IDS, "not a list of integers"),
    "no ids": ([], Code.BLANK_PROMPT, "the list of ids is empty"),
    "a null among the ids": ([1, None], Code.BAD_PROMPT_IDS, "not a list of integers"),
    "a negative id": ([1, -1], Code.BAD_PROMPT_IDS, "not in 0 to 3071"),
    "an id above the vocabulary": ([1, 3072], Code.BAD_PROMPT_IDS, "not in 0 to 3071"),
    "an id beyond 32 bits": ([2**32 + 5], Code.BAD_PROMPT_IDS, "not in 0 to 3071"),
    "ids over the context": ([5] * 1024, Code.PROMPT_TOO_LONG, "1,024"),
}


def published(job: Job) -> tuple[list[str], list[dict[str, Any]]]:
    """The prompts that workers would be given, and the rows published if no worker answered any."""
    folder = RunFolder.create(job.run_path, job.identity)
    windows = list(plan_windows(folder, job.dataset, job.prompter, job.run_id, plan_options(job.settings)))
    prompts = [ids for window in windows for shard in window.shards for ids in read_prompts(folder, shard.id).ids]
    publish(folder, windows, job.dataset, job.output, result_schema("generate"), {"settings": {}}, partial=True)
    lines = Path(job.output_path).read_text(encoding="utf-8").split("\n")[:-1]
    return [job.checkpoint.tokenizer().decode(ids.tolist()) for ids in prompts], [json.loads(line) for line in lines]


def planned(place: Path, source: Path, **job: Any) -> Job:
    output = {"path": str(place / "out.jsonl"), "error_budget": 1.0}
    return checked(place, str(source), job={"prompt": None, **(job or CHAT)}, output=output)


def codes(rows: Sequence[dict[str, Any]]) -> list[str]:
    assert {row["status"] for row in rows} == {"error"}
    return [row["error"]["code"] for row in rows]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", LINES)
def test_lines(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    line, code, words = LINES[name]
    source = tmp_path / "x.jsonl"
    source.write_bytes(b'{"text": "first", "who": "user"}\n' + line + b"\n" + GOOD + b"\n")
    prompts, rows = published(planned(tmp_path, source))
    assert codes(rows) == [Code.DEADLINE, code, Code.DEADLINE]
    message = rows[1]["error"]["message"]
    assert words in message
    assert SECRET.decode() not in message
    assert sorted(text for prompt in prompts for text in ("first", "good") if text in prompt) == ["first", "good"]
    assert SECRET.decode() not in "".join(capfd.readouterr()) + caplog.text


@pytest.mark.parametrize("end", [b'{"text": "SECRE', b'{"text": "SECRE\xe2\x82', b'{"text"'])
def test_a_truncated_last_line(tmp_path: Path, end: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(GOOD + b"\n" + end)
    _, rows = published(planned(tmp_path, tmp_path / "x.jsonl", prompt="{{ text }}"))
    assert codes(rows) == [Code.DEADLINE, Code.TRUNCATED_LINE]
    assert "line 2 of x.jsonl: the last line ends inside" in rows[1]["error"]["message"]


def test_a_line_over_the_cap_is_not_held(tmp_path: Path) -> None:
    source = tmp_path / "x.jsonl"
    with source.open("wb") as stream:
        stream.write(GOOD + b'\n{"text": "')
        for _ in range(320):
            stream.write(b"x" * (1 << 20))
        stream.write(b'"}\n' + GOOD)
    tracemalloc.start()
    _, rows = published(planned(tmp_path, source, prompt="{{ text }}"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert codes(rows) == [Code.DEADLINE, Code.LINE_TOO_LONG, Code.DEADLINE]
    assert rows[1]["error"]["message"] == "line 2 of x.jsonl: longer than 64 MiB"
    assert peak < 160 << 20


@pytest.mark.parametrize("name", IDS)
def test_ids(tmp_path: Path, name: str) -> None:
    value, code, words = IDS[name]
    table = pa.table({"ids": pa.array([[1, 2], value], pa.list_(pa.int64()))})
    pq.write_table(table, tmp_path / "x.parquet")
    _, rows = published(planned(tmp_path, tmp_path / "x.parquet", prompt_ids="ids"))
    assert codes(rows) == [Code.DEADLINE, code]
    assert words in rows[1]["error"]["message"]


def test_integers_beyond_64_bits_as_ids(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"ids": [1]}\n{"ids": [99999999999999999999]}\n{"ids": [1.0]}\n{"ids": "1"}\n')
    _, rows = published(planned(tmp_path, tmp_path / "x.jsonl", prompt_ids="ids"))
    assert codes(rows) == [Code.DEADLINE, *[Code.BAD_PROMPT_IDS] * 3]


BROKEN = pa.Array.from_buffers(pa.string(), 2, pa.array([b"good", b"SECRET\xff"], pa.binary()).buffers())


@pytest.mark.parametrize(
    ("column", "code", "words", "shown"),
    [
        (BROKEN, Code.INVALID_UTF8, "row 1 (x.parquet): invalid UTF-8 at byte 6 of column 'text'", "SECRET\ufffd"),
        (pa.array([1, 2**31 - 1], pa.date32()), Code.UNREADABLE_VALUE, "the date32[day] of column", "2147483647"),
        (pa.array([1, 2**62], pa.timestamp("us")), Code.UNREADABLE_VALUE, "timestamp[us]", "4611686018427387904"),
        (pa.array([1, 2**62], pa.duration("ms")), Code.UNREADABLE_VALUE, "duration[ms]", "4611686018427387904"),
    ],
)
def test_values_that_parquet_does_not_check(
    tmp_path: Path, column: pa.Array, code: Code, words: str, shown: str
) -> None:
    pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet")
    prompts, rows = published(planned(tmp_path, tmp_path / "x.parquet", prompt="{{ text }}"))
    assert codes(rows) == [Code.DEADLINE, code]
    assert words in rows[1]["error"]["message"]
    assert "SECRET" not in rows[1]["error"]["message"]
    assert len(prompts) == 1
    assert rows[1]["text"] == shown


def test_such_a_value_where_no_prompt_reads_it_costs_nothing(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"], "x": BROKEN, "y": pa.array([1, 2**31 - 1], pa.date32())})
    pq.write_table(table, tmp_path / "x.parquet")
    prompts, rows = published(planned(tmp_path, tmp_path / "x.parquet", prompt="{{ text }}"))
    assert codes(rows) == [Code.DEADLINE] * 2
    assert len(prompts) == 2
    assert (rows[0]["x"], rows[0]["y"], rows[1]["y"]) == ("good", "1970-01-02", "2147483647")


TYPES = {
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16), bytes(15) + b"\1"], pa.binary(16))),
    "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a":1}', "[2]"])),
    "dictionary": pa.DictionaryArray.from_arrays(pa.array([1, 0]), pa.array(["second", "first"])),
    "large": pa.array(["a", None], pa.large_string()),
    "view": pa.array(["b", "c"], pa.string_view()),
    "decimal": pa.array([1, 2], pa.decimal128(30, 2)),
}


def test_columns_of_uncommon_types_are_read_and_kept(tmp_path: Path) -> None:
    table = pa.table({**TYPES, "bytes": pa.DictionaryArray.from_arrays(pa.array([0, 0]), pa.array([b"kept"]))})
    pq.write_table(table, tmp_path / "x.parquet")
    prompt = " ".join(f"{{{{ {name} }}}}" for name in TYPES)
    prompts, rows = published(planned(tmp_path, tmp_path / "x.parquet", prompt=prompt))
    assert sorted(prompts) == [
        '00000000-0000-0000-0000-000000000000 {"a":1} first a b 1.00',
        "00000000-0000-0000-0000-000000000001 [2] second  c 2.00",
    ]
    assert [list(row.values())[:6] for row in rows] == [
        ["00000000-0000-0000-0000-000000000000", '{"a":1}', "first", "a", "b", "1.00"],
        ["00000000-0000-0000-0000-000000000001", "[2]", "second", None, "c", "2.00"],
    ]
    assert {row["bytes"] for row in rows} == {"a2VwdA=="}


def test_a_template_that_fails_or_never_ends_costs_its_row(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"n": 1}\n{"n": {"SECRET": 1}}\n{"n": 90000000}\n')
    prompt = "{% for i in range(n) %}{% for j in range(n) %}{{ j }}{% endfor %}{% endfor %}"
    _, rows = published(planned(tmp_path, tmp_path / "x.jsonl", prompt=prompt))
    assert codes(rows) == [Code.DEADLINE, Code.TEMPLATE_ERROR, Code.TEMPLATE_ERROR]
    assert not any("SECRET" in row["error"]["message"] for row in rows)


def test_what_is_accepted_is_preserved(tmp_path: Path) -> None:
    source = tmp_path / "x.jsonl"
    texts = ["mark", "a\u2028b\u2029c\u0085d", "nul\0nul", "\U0001f600", "last"]
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts]
    source.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    prompts, rows = published(planned(tmp_path, source, prompt="{{ text }}"))
    assert [row["text"] for row in rows] == texts
    assert sorted(prompts) == sorted(texts)
    written = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    assert not {"\u0085", "\u2028", "\u2029", "\r", "\ufeff"} & set(written)
    assert "\\u2028b\\u2029c\\u0085" in written


@pytest.mark.parametrize("name", ["x.jsonl", "groups.parquet", "rows.parquet"])
def test_no_rows_are_an_empty_result(tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    if name == "x.jsonl":
        source.touch()
    elif name == "groups.parquet":
        pq.ParquetWriter(source, pa.schema([("text", pa.string())])).close()
    else:
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), source)
    assert published(planned(tmp_path, source, prompt="{{ text }}")) == ([], [])
