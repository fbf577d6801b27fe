"""One finding of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, what was found, and what to do about it; `advice` is empty where all is well."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""
