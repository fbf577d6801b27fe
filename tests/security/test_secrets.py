"""Passwords do not get into settings, and so not into manifests, events, run folders or messages."""

from __future__ import annotations

import pytest

from data.errors import InputError
from tasks.configuration import load_settings

URL = "s3://user:kestrel@bucket/rows.parquet"


@pytest.mark.parametrize("name", ["input.path", "output.path"])
def test_a_password_in_a_url_is_refused_and_not_repeated(name: str) -> None:
    section, key = name.split(".")
    with pytest.raises(InputError, match="must not hold a password") as raised:
        load_settings(None, {section: {key: URL}}, ())
    assert "kestrel" not in str(raised.value)


@pytest.mark.parametrize(
    "path",
    ["s3://bucket/a@b:c", "abfs://container@account.dfs.core.windows.net/x", "hf://datasets/a/b@main/x", "a:b@c"],
)
def test_other_urls_with_such_signs_are_taken(path: str) -> None:
    assert load_settings(None, {"input": {"path": path}}, ()).input.path == path
