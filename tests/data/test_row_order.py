"""Results come out by row whatever order, shape and size they go in with, and leave no file behind."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data.row_order
from data.row_order import RowOrder

SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64()),
        pa.field("output", pa.string()),
        pa.field("embedding", pa.list_(pa.float32(), 2)),
        pa.field("probabilities", pa.struct([("Yes", pa.float64()), ("yes", pa.float64())])),
    ]
)


def result(row: int) -> dict[str, object]:
    if row % 7 == 0:
        return {"row": row, "output": None, "embedding": None, "probabilities": None}
    return {"row": row, "output": "x" * (row % 50), "embedding": [row, 0.5], "probabilities": {"Yes": 1.0, "yes": row}}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.permutations(range(100, 180)), st.integers(1, 30), st.integers(1, 2000), st.integers(1, 9))
def test_every_result_comes_out_once_by_row(
    tmp_path: Path, rows: list[int], piece: int, bucket_bytes: int, batch_rows: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.row_order, "BUCKET_BYTES", bucket_bytes)
        patch.setattr(data.row_order, "_BATCH_ROWS", batch_rows)
        order = RowOrder(tmp_path, 100, 80)
        given = [result(row) for row in rows if row % 3]
        for start in range(0, len(given), piece):
            order.add(pa.Table.from_pylist(given[start : start + piece], SCHEMA))
        found = [record for batch in order.batches() for record in batch.to_pylist()]
    assert found == sorted(given, key=lambda record: record["row"])
    assert not os.listdir(tmp_path)


def test_nothing_in_nothing_out(tmp_path: Path) -> None:
    order = RowOrder(tmp_path, 0, 10)
    order.add(SCHEMA.empty_table())
    assert list(order.batches()) == []
    order.close()
