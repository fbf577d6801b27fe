"""The fresh start of a flow run: made once, however often Prefect tries the run, and remembered in the run folder.

Attempts tell nothing: the first may have been refused before it set anything aside. The record is written last, when
the old ledger is set aside and the output may be replaced; an attempt that dies before it leaves an empty ledger,
which the next one sets aside once more. A folder that was itself set aside since still tells whose start it was, so
that a late retry does not undo another one's.
"""

from __future__ import annotations

import glob
from pathlib import Path

from data.durable import write_file
from data.run_folder import RunFolder

FRESH_START = "fresh_start"


def remember_fresh_start(folder: RunFolder, flow_run: str) -> None:
    """Keep that the ledger in this folder is the one which a flow run has started afresh."""
    write_file(folder.tmp, folder.path / FRESH_START, lambda file: file.write(flow_run.encode()))


def started_afresh(run_path: Path, flow_run: str) -> bool:
    """Whether a flow run has had its fresh start at a run folder."""
    aside = run_path.parent.glob(f"{glob.escape(run_path.name)}.old-*")
    return any(_flow_run_of(folder) == flow_run for folder in (run_path, *aside))


def _flow_run_of(folder: Path) -> str | None:
    try:
        return (folder / FRESH_START).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
