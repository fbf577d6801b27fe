"""The reference of everything that can go wrong, made from where it is defined: docs/errors.md.

`python -m tasks.reference` writes it with the other references; a test holds it against the definitions.
"""

from __future__ import annotations

from pathlib import Path

from data.error_codes import Code
from data.exit_status import ExitStatus

ERRORS_PATH = Path(__file__).parent.parent / "docs" / "errors.md"

HEAD = """\
# Errors

What is wrong with a setting, a file or the model is found before anything is started and ends the program with one line
on stderr. What is wrong with one row becomes that row's result: `status` is `error`, and `error` holds a code of the
second table and a message that names the place, never the row's text. Rows with an error count against
`output.error_budget`, a share of all rows; above it nothing is published and the exit status is 1. Rows that cannot
work are known once they are planned: where they alone are above the budget, nothing is computed either, unless the run
had begun before. `overnight plan` lists them without running anything; `overnight infer --retry-errors` computes error
rows again.

Compressed input of up to 256 MiB is read to its end before the start. Damage in the middle of a larger one, or of a
Parquet file whose beginning and end are whole, is found when the rows there are planned: the run then ends with status
1, and the message names the file. The whole file that takes its place is another input, and so another run; it computes
again what was answered, unless `[cache]` is enabled.
"""


def errors_text() -> str:
    """The text of docs/errors.md: exit statuses, then the codes of error rows."""
    lines = [HEAD.rstrip(), "", "## Exit statuses", "", "| status | meaning | what to do |", "|---|---|---|"]
    lines += [f"| {status.value} | {status.meaning} | {status.remedy} |" for status in ExitStatus]
    lines += ["", "## Error rows", "", "| code | cause | what to do |", "|---|---|---|"]
    lines += [f"| `{code.value}` | {code.cause} | {code.remedy} |" for code in Code]
    return "\n".join(lines) + "\n"
