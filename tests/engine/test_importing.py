"""Imports are not interrupted by searches for garbage, and what they leave is not searched later."""

from __future__ import annotations

import gc

import pytest

from engine.importing import without_collections


def interrupted_import() -> None:
    with without_collections():
        assert not gc.isenabled()
        raise ImportError


def test_collections_are_off_in_the_block_alone() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(ImportError):
        interrupted_import()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    gc.unfreeze()
