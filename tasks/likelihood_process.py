"""A process that measures likelihoods: candidate and reference loaded on one device, texts in, sums of each row out.

It joins data and engine and never imports Prefect. What it measures is the business of engine.comparison; who starts
it, and what its end means, of tasks.likelihood.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from data.errors import InputError
from engine.child import Mailbox
from engine.faults import out_of_memory
from tasks.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LikelihoodOrder(BaseModel):
    """What one process is to do: the rows `part`, `part + parts`, ... of the file `texts`, of columns ids and first."""

    model_config = ConfigDict(frozen=True)

    candidate: Settings
    reference: Settings | None
    device: str
    threads: int
    texts: Path
    part: int
    parts: int

    def to_message(self) -> dict[str, Any]:
        """The order as the JSON object that the process reads."""
        return self.model_dump(mode="json", by_alias=True)


def main(mailbox: Mailbox) -> None:
    """The process: read the order, load the models, measure, tell the rows as they are done."""
    order = LikelihoodOrder.model_validate(mailbox.receive(wait=True))
    import torch

    torch.set_num_threads(order.threads)
    try:
        # The reference first: whether a candidate of 4 bits is unpacked then depends on what is left beside it.
        reference = None if order.reference is None else load(order.reference, order.device)
        candidate = load(order.candidate, order.device)
        _measure(mailbox, order, candidate, reference)
    except (InputError, ValueError, OSError) as error:
        traceback.print_exc()
        mailbox.send({"refused": str(error), "memory": False})
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        traceback.print_exc()
        mailbox.send({"refused": str(error).splitlines()[0], "memory": True})


def load(settings: Settings, device_name: str) -> PreTrainedModel:
    """The model of `settings.model`, whose path is a folder, in the precision that the settings say."""
    import torch

    from engine.footprint import fits_unpacked
    from engine.model import load_model, resolve_dtype
    from engine.precision import quantize

    device, engine = torch.device(device_name), settings.engine
    model = load_model(
        settings.model.path,
        dtype=resolve_dtype(engine.dtype, device),
        device=device,
        trust_remote_code=settings.model.trust_remote_code,
        packed=True,
    )
    quantize(model, settings.model.quantization, lambda model, size: fits_unpacked(model, size, engine, positions=0))
    return model


def _measure(
    mailbox: Mailbox, order: LikelihoodOrder, candidate: PreTrainedModel, reference: PreTrainedModel | None
) -> None:
    import pyarrow.parquet as pq

    from engine.comparison import Compared, Comparison
    from engine.request import Request

    engine = Comparison(candidate, reference, order.candidate.engine)
    mailbox.send({"ready": True})
    table = pq.read_table(order.texts)
    rows = range(order.part, len(table), order.parts)
    requests = [
        Request(row, table["ids"][row].values.to_numpy(), scored_from=table["first"][row].as_py()) for row in rows
    ]
    engine.add(requests)
    while engine.has_work:
        done: list[list[Any]] = []
        for found in engine.step():
            assert isinstance(found, Compared) or found.error is not None
            if not isinstance(found, Compared):
                assert found.error is not None
                mailbox.send({"refused": found.error[1], "memory": found.error[0] == "out_of_memory"})
                return
            done.append([found.id, found.scored, found.logprob, found.reference, found.same, found.divergence])
        mailbox.send({"rows": done})  # of every step, also of one that finished none: it tells that work goes forward
    mailbox.send({"done": True})
