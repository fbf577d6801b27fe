"""Rows drawn at random: the same ones each time, none in two parts, as they stand in the input."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.dataset import Dataset
from data.drawn_rows import DrawnRows, draw_rows, drawn_suffix
from data.settings import InputSettings


def _input(folder: Path, format_: str, rows: int) -> Dataset:
    folder.mkdir()
    records = [{"id": number, "text": f"row {number} ü"} for number in range(rows)]
    for part in range(2):
        place = folder / f"day={part}"
        place.mkdir()
        chosen = records[part::2]
        if format_ == "parquet":
            pq.write_table(pa.Table.from_pylist(chosen), place / "rows.parquet")
        else:
            (place / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in chosen))
    return Dataset.open(InputSettings(path=str(folder)))


def _written(drawn: DrawnRows, path: Path) -> list[dict[str, object]]:
    with path.open("wb") as file:
        drawn.write(file)
    records = Dataset.open(InputSettings(path=str(path))).chunks()
    return [dict(record) for chunk in records for record in chunk.records]  # type: ignore[arg-type]


@pytest.mark.parametrize("format_", ["parquet", "jsonl"])
def test_parts_share_no_row_and_are_written_as_they_were(format_: str, tmp_path: Path) -> None:
    dataset = _input(tmp_path / "in", format_, 3000)
    whole = [record for chunk in dataset.chunks() for record in chunk.records]
    parts = draw_rows(dataset, [100, 700])
    assert [len(part.records) for part in parts] == [100, 700]
    positions = [set(part.positions) for part in parts]
    assert not positions[0] & positions[1]
    for number, part in enumerate(parts):
        assert list(part.positions) == sorted(part.positions)
        assert _written(part, tmp_path / f"{number}{drawn_suffix(dataset)}") == [
            whole[position] for position in part.positions
        ]
    ids = [float(str(record["id"])) for record in parts[1].records]
    assert abs(sum(ids) / len(ids) - 1500) < 4 * 870 / 700**0.5, "the rows of a part come from all over the input"


def test_a_part_stays_when_a_later_one_grows(tmp_path: Path) -> None:
    dataset = _input(tmp_path / "in", "jsonl", 500)
    assert draw_rows(dataset, [20, 100])[0] == draw_rows(dataset, [20, 480])[0]
    assert draw_rows(dataset, [20, 100])[1].positions != draw_rows(dataset, [20, 100], seed=1)[1].positions
    assert len(draw_rows(dataset, [20, 1000])[1].records) == 480


def test_rows_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"id": 1}\nnonsense\n{"id": 2}\n')
    (drawn,) = draw_rows(Dataset.open(InputSettings(path=str(path))), [3])
    assert [record["id"] for record in drawn.records] == [1, 2]
    assert drawn.positions == (0, 2)
