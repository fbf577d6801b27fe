"""The mark of tests that only `make faults` runs."""

from __future__ import annotations

import os

import pytest

full = pytest.mark.skipif("FAULTS_FULL" not in os.environ, reason="part of make faults")
