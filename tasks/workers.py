"""The workers of a run, made of its job: what each process is told, and how much it may hold."""

from __future__ import annotations

from data.run_folder import RunFolder
from engine.supervisor import Child
from tasks.canary import Expected
from tasks.deadline import Deadline
from tasks.deaths import recording
from tasks.devices import alike, worker_devices
from tasks.events import EventLog
from tasks.growth import growth_limit
from tasks.host_memory import host_memory
from tasks.job import Job
from tasks.pool import WorkerPool
from tasks.turns import Turn
from tasks.worker_order import WorkerOrder

# What a GPU holds the KV cache of at once; some half a minute of its work, which is what its death costs.
HELD_TOKENS = 2_000_000


def start_pool(
    target: str, job: Job, folder: RunFolder, events: EventLog, deadline: Deadline | None, turn: Turn | None = None
) -> WorkerPool:
    """The worker processes of a run, each on its own device; none is started before there is work.

    target: `module:function` that a process runs.
    """
    logs = folder.path / "workers"
    placed = job.placement
    names = worker_devices(placed)
    expected = Expected.of(job.checkpoint, names[0], alike=alike(placed), workers=placed.workers)

    def start(index: int) -> Child:
        logs.mkdir(mode=0o700, exist_ok=True)
        child = Child(target, environment=placed.environment(index), log=logs / f"{index}.log", beats=True)
        order = WorkerOrder(
            worker=index,
            run=folder.path,
            settings=job.settings,
            device=placed.device,
            threads=placed.threads,
            expected=expected.model_copy(update={"worker": index, "machine": names[index]}),
            others=placed.workers > 1,
        )
        child.send(order.to_message())
        return child

    shardwise = job.settings.engine.shardwise
    return WorkerPool(
        job.placement.workers,
        depth=1 if shardwise else 2,
        tokens=0 if shardwise else HELD_TOKENS,
        start=start,
        deadline=deadline,
        turn=turn,
        stall_timeout=job.settings.workers.stall_timeout,
        retries=job.settings.workers.retries,
        growth=growth_limit(host_memory().total, job.placement.workers),
        on_event=recording(folder, events),
    )
