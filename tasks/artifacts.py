"""What the Prefect UI shows of a run: its progress while it runs, then a table, the report and a link to the result."""

from __future__ import annotations

from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from tasks.progress import Progress
from tasks.summary import RunReport, as_markdown


def start_progress(run_id: str) -> UUID:
    """A progress bar of the run's rows, at 0 %."""
    artifact = create_progress_artifact(0.0, key="infer-progress", description=f"Rows answered in run {run_id}")
    assert isinstance(artifact, UUID)
    return artifact


def show_progress(artifact: UUID, progress: Progress) -> None:
    """Move the bar to the share of rows that are done."""
    total = progress.rows_total
    update_progress_artifact(artifact, min(100.0, 100.0 * progress.rows_done / total) if total else 0.0)


def show_report(report: RunReport) -> None:
    """The counts as a table, the report as text, and where the result is."""
    rows = [{"outcome": "ok", "rows": report.ok}]
    rows += [{"outcome": code, "rows": count} for code, count in sorted(report.errors.items())]
    create_table_artifact(rows, key="infer-rows", description=f"Rows of run {report.run_id} by outcome")
    create_markdown_artifact(as_markdown(report), key="infer-report", description=f"Report of run {report.run_id}")
    create_link_artifact(
        f"file://{report.output}", link_text=report.output, key="infer-output", description="The result"
    )
