"""The benchmark: `python -m engine.bench`, the engine alone on fixed workloads, against what the device could do.

This is the process around engine.bench_subject: settings in, figures out, as a program or as a supervised child
(engine.bench_process). A wrong option is told before torch is imported, and a GPU gets ready while transformers is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

from engine.bench_settings import BenchSettings, parse
from engine.bytecode import keep_bytecode
from engine.child import Mailbox
from engine.importing import without_collections
from engine.workloads import WrongAnswer

Figures = dict[str, Any]
"""One line of the benchmark's output."""


def main(arguments: list[str]) -> int:
    """Print the figures as JSON lines, progress on stderr. Status 1 for wrong answers, 2 for a wrong setting."""
    settings = parse(arguments, "python -m engine.bench")
    try:
        for figures in measured(settings, lambda text: print(text, file=sys.stderr, flush=True)):
            print(json.dumps(figures), flush=True)
    except (ValueError, WrongAnswer) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


def serve(mailbox: Mailbox) -> None:
    """The same in a child of engine.supervisor: settings in; figures, progress and at last the outcome out."""
    order = mailbox.receive(wait=True)
    try:
        for figures in measured(BenchSettings.model_validate(order), lambda text: mailbox.send({"progress": text})):
            mailbox.send({"figures": figures})
    except (ValueError, WrongAnswer) as error:
        mailbox.send({"error": str(error), "setting": isinstance(error, ValueError)})
    else:
        mailbox.send({"done": True})


def measured(settings: BenchSettings, progress: Callable[[str], None]) -> Iterator[Figures]:
    """The figures of `engine.bench_subject.bench`, which is imported while another thread makes the GPU's context."""
    with without_collections():
        import torch

        if settings.device != "cpu" and torch.cuda.is_available():
            Thread(target=torch.zeros, args=(1,), kwargs={"device": "cuda"}, name="context").start()
        from engine.bench_subject import bench
    return bench(settings, progress)


if __name__ == "__main__":
    keep_bytecode()
    sys.exit(main(sys.argv[1:]))
