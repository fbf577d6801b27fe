"""The report of a run that ended in an error: of its own, of Prefect, or of the way to Prefect's server."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace

from tasks.outcome import failed_report
from tasks.run import OpenRun
from tasks.summary import RunReport

# Less than a database needs to write anything at all.
_FULL_BYTES = 256 << 10
_NO_SPACE = os.strerror(errno.ENOSPC)


def report_of(run: OpenRun, error: Exception, *, ours: bool) -> RunReport:
    """The report of the result, where it had been published; else what is behind the error, as far as that is known.

    ours: whether the error is one of the run, not of Prefect.
    """
    if run.report is not None and not ours:
        after = f"Prefect failed once the result was published, which is whole: {error}"
        return replace(run.report, warnings=(*run.report.warnings, after))
    message = str(error) if ours else f"Prefect failed: {error}"
    if run.failure is not None:
        message = str(run.failure)
    if shutil.disk_usage(run.folder.path).free < _FULL_BYTES and _NO_SPACE not in message:
        message = f"{_NO_SPACE} on the disk of {run.folder.path} ({message})"
    return failed_report(run, message)
