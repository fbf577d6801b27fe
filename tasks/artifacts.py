"""What the Prefect UI shows of a run: its progress while it runs, then a table, the report and a link to the result."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from httpx import HTTPError
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException

from tasks.evaluation import Evaluation
from tasks.evaluation_screen import as_markdown as evaluation_markdown
from tasks.progress import Progress
from tasks.summary import RunReport, as_markdown


def start_progress(run_id: str) -> UUID | None:
    """A progress bar of the run's rows, at 0 %; None if the server did not take it."""
    return start_bar("infer-progress", f"Rows answered in run {run_id}")


def show_progress(artifact: UUID | None, progress: Progress) -> None:
    """Move the bar to the share of rows that are done."""
    total = progress.rows_total
    move_bar(artifact, 100.0 * progress.rows_done / total if total else 0.0)


def start_bar(key: str, description: str) -> UUID | None:
    """A progress bar at 0 %; None if the server did not take it."""
    with best_effort():
        artifact = create_progress_artifact(0.0, key=key, description=description)
        assert isinstance(artifact, UUID)
        return artifact
    return None


def move_bar(artifact: UUID | None, percent: float) -> None:
    """Move a bar of `start_bar`."""
    if artifact is not None:
        with best_effort():
            update_progress_artifact(artifact, min(100.0, percent))


def show_report(report: RunReport) -> None:
    """The counts as a table, the report as text, and where the result is."""
    rows = [{"outcome": "ok", "rows": report.ok}]
    rows += [{"outcome": code, "rows": count} for code, count in sorted(report.errors.items())]
    about = f"run {report.run_id}"
    with best_effort():
        create_table_artifact(rows, key="infer-rows", description=f"Rows of {about} by outcome")
        create_markdown_artifact(as_markdown(report), key="infer-report", description=f"Report of {about}")
        link = f"file://{report.output}"
        create_link_artifact(link, link_text=report.output, key="infer-output", description=f"Result of {about}")


def show_evaluation(evaluation: Evaluation) -> None:
    """The figures as text, and where the report is."""
    with best_effort():
        markdown = evaluation_markdown(evaluation)
        create_markdown_artifact(
            markdown, key="evaluate-report", description=f"Evaluation of {evaluation.candidate.path}"
        )
        link = f"file://{evaluation.report}"
        create_link_artifact(
            link, link_text=evaluation.report, key="evaluate-output", description="Report with drawings"
        )


@contextmanager
def best_effort() -> Iterator[None]:
    """A server that is away for a while costs a picture, not the night."""
    try:
        yield
    except (HTTPError, PrefectException) as error:
        logging.getLogger(__name__).warning("Prefect did not take an artifact: %s", error)
