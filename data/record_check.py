"""The check that a record of JSON carries of its own fields, so that a changed byte in it is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def record_check(fields: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the digest of fields as JSON has them, whatever their order."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
