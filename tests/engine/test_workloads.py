"""The workloads are fixed: the same rows for everybody, whatever this code becomes."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest

from engine.workloads import Workload

# Of the rows as JSON, [[prompt ids, output length], ...], by the definition that published figures were measured with.
DIGESTS = {
    ("decode:64", 150_000): "262a19ddb2dc9aac1aff43a3aa7c2c1896c79c363c5cb8ce71ad99b6acc43981",
    ("label:100", 150_000): "1c9a9111a089c444f71795251d78168542ef20df972bbc748071499604c6c665",
    ("prefill:64", 150_000): "9fe00e82d7209676d89c4bb93351884d9684b01ca27c0949a29b978554e62aff",
    ("decode:16:seed3", 150_000): "1029d197954569d67efefe4f9cbf8c4a2f8a2272d1b2c4e1160584d4506cfcb8",
    ("label:50", 1_000): "b15aeb0e8450fb50aa9726a11cb386730297a134c3691c1e74c2eb78538c418a",
}


@pytest.mark.parametrize(("name", "vocabulary"), DIGESTS)
def test_rows_never_change(name: str, vocabulary: int) -> None:
    rows = Workload.parse(name).rows(vocabulary)
    text = json.dumps([[row.prompt, row.output] for row in rows])
    assert sha256(text.encode()).hexdigest() == DIGESTS[name, vocabulary]


def test_names() -> None:
    assert Workload.parse("label") == Workload("label", 4096)
    assert Workload.parse("decode:256") == Workload("decode", 256)
    assert Workload.parse("decode:seed7") == Workload("decode", 1024, 7)
    assert Workload.parse("prefill:8:seed3").name == "prefill:8:seed3"
    assert Workload.parse("prefill:8:seed0").name == "prefill:8"


@pytest.mark.parametrize(
    "text", ["", "dekode:8", "decode:0", "decode:-1", "decode:8:3", "label:4:seed", "label:4:seed3x"]
)
def test_another_notation_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"decode, label, prefill.*label:4096:seed3"):
        Workload.parse(text)


def test_a_vocabulary_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="vocabulary of 100 is too small"):
        Workload.parse("label:2").rows(100)


@pytest.mark.parametrize("kind", ["decode", "label", "prefill"])
def test_no_output_is_longer_than_announced(kind: str) -> None:
    workload = Workload.parse(f"{kind}:200")
    assert max(row.output for row in workload.rows()) <= workload.longest_output


def test_a_fifth_of_the_label_rows_repeats_another() -> None:
    rows = Workload.parse("label:500").rows()
    assert len({tuple(row.prompt) for row in rows}) == 400
    assert len({tuple(row.prompt[:512]) for row in rows}) == 1
