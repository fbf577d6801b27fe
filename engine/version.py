"""The version of the answers, which keys those that are kept for later runs."""

ANSWERS = 1
"""Raised by whoever changes what a prompt is answered with, in the engine or where its output becomes a result, beyond
the rounding that batches differ by anyway: the answers of an older version are then computed again."""
