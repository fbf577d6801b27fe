"""Where a model gets layers whose weights stay in 4 bits, while its checkpoint is read.

transformers makes the model itself before it reads, from a class and a config, and puts every tensor where a parameter
or buffer of its name and shape is. So the class it is given makes an ordinary model and then exchanges layers.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from engine.int4_linear import Int4Linear


class Int4Places:
    """The linear layers of a model that are to be Int4Linear: those that were taken."""

    def __init__(self, shell: PreTrainedModel) -> None:
        """shell: a model of the class and config in question, with or without weights."""
        self._kind = type(shell)
        self._prefix = shell.base_model_prefix
        head = shell.get_output_embeddings()  # type: ignore[no-untyped-call]
        linears = ((name, module) for name, module in shell.named_modules() if type(module) is nn.Linear)
        self._shapes = {name: list(module.weight.shape) for name, module in linears if module is not head}
        self._groups: dict[str, int] = {}  # inputs of a group, by the layer's name

    def take(self, name: str, shape: list[int], group: int) -> bool:
        """Take the layer that the checkpoint calls `name`; False if there is none of that shape, or it is the head."""
        for place in (name, name.removeprefix(f"{self._prefix}."), f"{self._prefix}.{name}"):
            if self._shapes.get(place) == shape:
                self._groups[place] = group
                return True
        return False

    def kind(self) -> type[PreTrainedModel]:
        """A class that makes models of the shell's class, with the layers taken exchanged."""
        kind: Any = self._kind

        def make(cls: type, config: Any) -> PreTrainedModel:
            del cls
            model: PreTrainedModel = kind(config)
            for place, group in self._groups.items():
                linear = model.get_submodule(place)
                assert isinstance(linear, nn.Linear)
                model.set_submodule(place, Int4Linear.like(linear, group))
            return model

        made: type[PreTrainedModel] = type(kind.__name__, (kind,), {"__new__": make, "__module__": kind.__module__})
        return made
