"""The rows of the tests of publication, how they are published, and what comes out."""

from __future__ import annotations

from typing import Any

from data.settings import OutputSettings

ROWS = [{"id": number, "text": f"text {number * 7 % 60}" if number % 40 else ""} for number in range(300)]


def settings(lab: Any, **changes: Any) -> OutputSettings:
    return OutputSettings(**{"path": str(lab.root / "out"), "error_budget": 0.1, **changes})


def expected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            **row,
            "output": f"{row['text'].upper()}#0" if row["text"] else None,
            "status": "ok" if row["text"] else "error",
            "error": None if row["text"] else {"code": "blank_prompt", "message": "the prompt is blank"},
            "finish_reason": "stop" if row["text"] else None,
            "input_tokens": len(row["text"]) or None,
            "output_tokens": len(row["text"]) or None,
        }
        for row in rows
    ]
