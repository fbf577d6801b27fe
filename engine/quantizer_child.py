"""The inside of a process that quantizes (engine.quantizer_process): an order in; layers, then the outcome, out."""

from __future__ import annotations

import traceback
from pathlib import Path

from engine.child import Mailbox
from engine.importing import without_collections
from engine.quantizer_process import QuantizerOrder, read_rows
from engine.quantizer_report import LayerReport


def serve(mailbox: Mailbox) -> None:
    """Quantize what the first message orders."""
    order = QuantizerOrder.model_validate(mailbox.receive(wait=True))
    with without_collections():
        from engine.quantizer import Quantizer
        from engine.team import Team

    def progress(layer: LayerReport, layers: int) -> None:
        mailbox.send({"layer": layer.model_dump(mode="json"), "layers": layers})

    team = Team(order.rank, order.size, Path(order.meeting))
    try:
        quantizer = Quantizer(
            order.model,
            **order.settings.model_dump(),
            calibration=read_rows(Path(order.calibration)),
            output=order.output,
            progress=progress if team.first else None,
            team=team,
        )
        if team.first:
            mailbox.send({"done": quantizer.apply().model_dump(mode="json")})
        else:
            quantizer.assist()
            mailbox.receive(wait=True)  # ended by the caller, once the first has written all
    except ValueError as error:
        traceback.print_exc()  # into the log: it may be more than a wrong setting
        mailbox.send({"error": str(error)})
