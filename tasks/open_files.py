"""How many files a run may have open at once: as many as the system lets it, and no run with too few.

Python, Prefect and the connections to the workers need some; with none left Prefect's threads end and its flow waits
for them for ever, so that a limit that is too low has to be found before.
"""

from __future__ import annotations

import resource

from data.errors import InputError

ENOUGH = 256


def raise_open_files() -> None:
    """Raise the limit of this process as far as it may. InputError: that is not far enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    if hard == resource.RLIM_INFINITY or hard > soft:
        wanted = 65_536 if hard == resource.RLIM_INFINITY else hard
        soft = max(soft, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < ENOUGH:
        raise InputError(f"only {soft} files may be open at once, a run needs {ENOUGH}; raise the limit (ulimit -n)")
