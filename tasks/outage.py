"""What becomes of a run whose flow was ended by Prefect, or by the way to its server, rather than by its own work."""

from __future__ import annotations

import shutil
from dataclasses import replace

from tasks.outcome import failed_report
from tasks.run import OpenRun
from tasks.summary import RunReport

# Less than a database needs to write anything at all.
_FULL_BYTES = 256 << 10


def outage_report(run: OpenRun, error: Exception) -> RunReport:
    """The report of the result, where it had been published; else what is behind the error, as far as that is known."""
    if run.report is not None:
        after = f"Prefect failed once the result was published, which is whole: {error}"
        return replace(run.report, warnings=(*run.report.warnings, after))
    if run.failure is not None:
        return failed_report(run, str(run.failure))
    if shutil.disk_usage(run.folder.path).free < _FULL_BYTES:
        return failed_report(run, f"no space is left on the disk of {run.folder.path} (Prefect's server: {error})")
    return failed_report(run, f"Prefect failed: {error}")
