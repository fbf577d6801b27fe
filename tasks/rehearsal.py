"""How long publishing will take, measured once while the workers compute: when the first shard is finished.

It runs in a thread of its own for about a second (`data.rehearsal`) and tells the deadline. Should it fail, the time
stays the one that is assumed without a measure: what is wrong will come up where it matters.
"""

from __future__ import annotations

import threading

from data.errors import InputError, RunError
from data.ledger import Commit
from data.rehearsal import rehearse
from data.run_folder import RunFolder
from tasks.deadline import Deadline
from tasks.job import Job
from tasks.progress import Event

END_SECONDS = 30.0  # a filesystem that hangs for longer is not waited for


class Rehearsal:
    """Listens to the events of a run that has a deadline."""

    def __init__(self, deadline: Deadline, run: RunFolder, job: Job) -> None:
        self._deadline, self._run, self._job = deadline, run, job
        self._thread: threading.Thread | None = None

    def tell(self, event: Event) -> None:
        """The first finished shard begins the measure."""
        if event["event"] == "done" and self._thread is None:
            self._thread = threading.Thread(target=self._measure, args=(event["shard"],), name="rehearsal", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Wait until it is done, if it was begun: it writes into the run folder, under names of its own."""
        if self._thread is not None:
            self._thread.join(END_SECONDS)

    def _measure(self, shard: str) -> None:
        try:
            commit = Commit.read(self._run.commits / f"{shard}.json")
            pace = rehearse(self._run, self._job.settings.input, self._job.output, commit)
        except (RunError, InputError, OSError):
            return
        self._deadline.publishing = pace
