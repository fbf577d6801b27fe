"""What becomes of a run that ended in an error: of its own, of Prefect, or of the way to Prefect's server.

A result needs no Prefect. Where every row is answered, or the deadline has come, it is published all the same.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

from data.errors import RunError
from tasks.outcome import failed_report
from tasks.run import OpenRun
from tasks.summary import RunReport

# Less than a database needs to write anything at all.
_FULL_BYTES = 256 << 10
_NO_SPACE = os.strerror(errno.ENOSPC)


def published_without_prefect(run: OpenRun, error: Exception) -> RunReport | None:
    """The report of the result, which is published now if it was not before; None if there can be none yet.

    error: that of Prefect. The caller holds the locks of the run.

    Raises:
        RunError: as publishing does.
    """
    when = "once the result was published, which is whole"
    if run.report is None:
        if run.failure is not None or run.job.options.retry_errors or not (run.late or run.complete):
            return None
        from tasks.stages import publish_result  # imports Prefect, which was there to fail

        publish_result.fn(run)
        when = "before the result was published, which needs no Prefect"
    assert run.report is not None
    return replace(run.report, warnings=(*run.report.warnings, f"Prefect failed {when}: {error}"))


def failed(run: OpenRun, error: Exception, *, ours: bool) -> RunReport:
    """The report of a run that an error has ended: what is behind it, as far as that is known.

    An error after publication is a warning: the manifest is in place and verified.
    ours: whether the error is one of the run, not of Prefect.

    Raises:
        RunError: the same, where the run folder cannot be read for a report.
    """
    message = str(error) if ours else f"Prefect failed: {error}"
    if run.report is not None:
        return replace(run.report, warnings=(*run.report.warnings, f"the result is whole, but afterwards: {message}"))
    if run.failure is not None:
        message = str(run.failure)
    if _full(run.folder.path) and _NO_SPACE not in message:
        message = f"{_NO_SPACE} on the disk of {run.folder.path} ({message})"
    try:
        return failed_report(run, message)
    except (OSError, RunError):  # the folder cannot be read, perhaps for the same reason
        raise RunError(message) from error


def _full(path: Path) -> bool:
    """Whether the disk of a folder is full; False where that cannot be known."""
    try:
        return shutil.disk_usage(path).free < _FULL_BYTES
    except OSError:
        return False
