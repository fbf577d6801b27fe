"""The audit flow: verify a published result from its bytes, on a schedule or after a copy."""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from data.audit import audit as verify
from data.errors import RunError


@flow(name="audit", persist_result=False)
def audit(output: str) -> int:
    """Verify the result at `output`; returns its rows. The run fails, naming every problem, if it is not valid."""
    report = verify(output)
    found = (
        "\n".join(f"- {problem}" for problem in report.problems) or f"Valid: {report.rows:,} rows, {report.ok:,} ok."
    )
    create_markdown_artifact(found, key="audit", description=f"Audit of {output}")
    if not report.valid:
        raise RunError(f"{output} is not valid: {'; '.join(report.problems)}")
    return report.rows
