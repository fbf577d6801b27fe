"""Philox against its published vectors, and the variates made from it."""

from __future__ import annotations

import math

import pytest
import torch

from engine.philox import exponentials, philox

# Known answers of Random123 (kat_vectors, philox4x32 10): counter, key, result.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), VECTORS)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, ...], result: tuple[int, ...]) -> None:
    words = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))  # type: ignore[arg-type]
    assert tuple(int(word) for word in words) == result


def test_variates_are_a_pure_function_of_stream_and_index() -> None:
    streams = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4]])
    whole = exponentials(streams, torch.tensor([0, 0, 1]), 10)
    assert torch.equal(exponentials(streams[1:2], torch.tensor([0]), 10), whole[1:2])
    assert torch.equal(exponentials(streams[:1], torch.tensor([0]), 7), whole[:1, :7])
    assert not torch.isclose(whole[0], whole[2]).any()


def test_variates_are_exponential() -> None:
    streams = torch.arange(400).view(100, 4)
    values = exponentials(streams, torch.zeros(100, dtype=torch.int64), 1000).flatten().double()
    assert values.min() > 0
    assert values.isfinite().all()
    assert abs(values.mean() - 1) < 0.02
    for quantile in (0.01, 0.5, 0.99):
        share = (values < -math.log(1 - quantile)).double().mean()
        assert abs(share - quantile) < 4 * math.sqrt(quantile * (1 - quantile) / len(values))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_equal_words() -> None:
    words = [torch.randint(0, 2**32, (64, 1)) for _ in range(5)]
    block = torch.arange(1000)[None]
    host = philox((block, words[0], words[1], words[2]), (words[3], words[4]))
    c0, c1, c2, k0, k1 = (word.cuda() for word in words)
    device = philox((block.cuda(), c0, c1, c2), (k0, k1))
    assert all(torch.equal(a, b.cpu()) for a, b in zip(host, device, strict=True))
