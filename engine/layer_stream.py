"""A checkpoint's decoder layers, one at a time: all that is in memory of a model is one layer and what enters it.

transformers builds the model without weights. Its own forward pass, with every decoder layer replaced by one that notes
what it is called with, turns token ids into the first layer's input, whatever the architecture does before its layers;
then a layer at a time gets its weights from the files, is run, and gives them back. The files are opened anew for each
layer, since pages of a mapped file count as memory for as long as it is open.

Only dense decoders whose tensors are stored under the names of their modules are taken; others are refused by name.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from engine import attention
from engine.attention import attending
from engine.model import check_config, check_model
from engine.packed import PackedAttention, upload
from engine.packing import Pack
from engine.trunk import trunk
from engine.weights import Source, open_weights


@dataclass
class Activations:
    """The input of one decoder layer for one pack, and what else each layer is called with."""

    pack: Pack
    hidden: Tensor  # [1, T, N], on the host
    calls: tuple[_Call, ...]  # for each layer


@dataclass(frozen=True)
class _Call:
    """What a layer is called with behind the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class LayerStream:
    """The decoder layers of the checkpoint `folder` with the safetensors `files`, computed in `dtype` on `device`.

    Raises ValueError for an architecture that cannot be done so.
    """

    def __init__(self, folder: Path, files: Sequence[str], *, dtype: torch.dtype, device: torch.device) -> None:
        self._files, self._dtype, self._device = files, dtype, device
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
        check_config(config)
        with torch.device("meta"):
            models: Any = AutoModelForCausalLM
            model = models.from_config(config, attn_implementation=attention.NAME)
        assert isinstance(model, PreTrainedModel)
        check_model(model)
        model.requires_grad_(False)
        model.train(False)
        self._model = model
        self.layers, self.prefix = _decoder_layers(model)
        with open_weights(files, torch.device("cpu")) as sources:
            # A file of the model without its head lacks the prefix that the head's model puts before all names.
            bare = not any(name.startswith(self.prefix) for name in sources)
            before = f"{model.base_model_prefix}." if bare else ""
            self.names = {before + name: name for name in sources}  # the model's name of a tensor: the file's
        for name in model.state_dict():
            if name.startswith(self.prefix) and name not in self.names:
                raise ValueError(
                    f"weight {name} is missing from the checkpoint; layers whose weights are stored otherwise "
                    f"(experts among them) cannot be quantized"
                )

    @property
    def whole(self) -> PreTrainedModel:
        """The model, without weights."""
        return self._model

    def name(self, index: int) -> str:
        """The name of layer `index` in the model."""
        return f"{self.prefix}{index}"

    def stored(self, index: int) -> dict[str, str]:
        """The names of the files' tensors that belong to layer `index`, by their names within the layer."""
        start = self.name(index) + "."
        return {place.removeprefix(start): name for place, name in self.names.items() if place.startswith(start)}

    def rest(self) -> list[str]:
        """The names of the files' tensors that belong to no layer."""
        starts = tuple(self.name(index) + "." for index in range(len(self.layers)))
        return [name for place, name in self.names.items() if not place.startswith(starts)]

    def enter(self, packs: Sequence[Pack]) -> list[Activations]:
        """What the first layer is given for each pack."""
        base = trunk(self._model)
        found: list[Activations] = []
        embedding = self._model.get_input_embeddings()
        # Rows are looked up in the stored dtype, so that no second copy of the table is made, and go on in ours.
        cast = embedding.register_forward_hook(lambda _module, _args, output: output.to(self._dtype))
        with self._filled(base, embedding), self._replaced(base) as notes, torch.no_grad():
            for pack in packs:
                ids, positions = upload(pack.ids(), self._device), upload(pack.positions(), self._device)
                base(input_ids=ids[None], position_ids=positions[None], use_cache=False)
                assert notes[0].hidden is not None
                calls = tuple(note.call for note in notes)
                found.append(Activations(pack, notes[0].hidden.cpu(), calls))
        cast.remove()
        return found

    @contextmanager
    def _replaced(self, base: nn.Module) -> Iterator[list[_Note]]:
        attribute = next(name for name, module in base.named_children() if module is self.layers)
        notes = [_Note(layer) for layer in self.layers]
        setattr(base, attribute, nn.ModuleList(notes))
        try:
            yield notes
        finally:
            setattr(base, attribute, self.layers)

    @contextmanager
    def _filled(self, base: nn.Module, embedding: nn.Module) -> Iterator[None]:
        """The modules beside the layers get their weights, for as long as the context is open."""
        outer = [module for module in base.children() if module is not self.layers]
        at = {module: name for name, module in self._model.named_modules()}
        with open_weights(self._files, self._device) as sources:
            for module in outer:
                self._fill(module, at[module], sources, None if module is embedding else self._dtype)
            try:
                yield
            finally:
                for module in outer:
                    module.to("meta")

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """Layer `index` with its weights, for as long as the context is open."""
        layer = self.layers[index]
        self.load(index)
        try:
            yield layer
        finally:
            layer.to("meta")
            _give_memory_back()

    def load(self, index: int) -> None:
        """Give layer `index` the weights of the files, whatever it holds."""
        with open_weights(self._files, self._device) as sources:
            self._fill(self.layers[index], self.name(index), sources, self._dtype)

    def _fill(self, module: nn.Module, name: str, sources: dict[str, Source], dtype: torch.dtype | None) -> None:
        model: Any = self._model
        for part in module.modules():
            stale = {key: buffer for key, buffer in part.named_buffers(recurse=False) if buffer.is_meta}
            for key, buffer in stale.items():
                setattr(part, key, torch.empty_like(buffer, device=self._device))
            if stale:
                model._init_weights(part)  # buffers that no checkpoint has: rotary frequencies and the like
        tensors: dict[str, Tensor] = {}
        for key in module.state_dict():
            tensor = sources[self.names[f"{name}.{key}"]][...]
            tensors[key] = tensor if dtype is None else tensor.to(dtype, copy=True)
        module.load_state_dict(tensors, assign=True)
        module.requires_grad_(False)

    def run(self, layer: nn.Module, index: int, entry: Activations) -> Tensor:
        """The output [1, T, N] of `layer`, which is number `index`, on the device."""
        call = entry.calls[index]
        with self.attention(entry):
            return first(layer(entry.hidden.to(self._device), *call.args, **call.kwargs))

    @contextmanager
    def attention(self, entry: Activations) -> Iterator[None]:
        """Parts of a layer can be run on that pack inside."""
        with attending(PackedAttention(entry.pack, self._device)), torch.no_grad():
            yield


def first(output: Any) -> Tensor:
    """The hidden states that a module gives, alone or with others behind them."""
    found = output[0] if isinstance(output, tuple) else output
    assert isinstance(found, Tensor)
    return found


def _give_memory_back() -> None:
    """glibc keeps what is freed in pieces of up to 32 MB, as most weights are, and by and by holds the whole model."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries lack it
    if trim is not None:
        trim(0)


class _Note(nn.Module):
    """Stands for a decoder layer: notes what it is called with, and gives the hidden states back as they are."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = (layer,)  # not a submodule
        self.hidden: Tensor | None = None
        self.call = _Call((), {})

    def __getattr__(self, name: str) -> Any:
        # Some models read what kind of attention a layer has from the layer.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_layer"][0], name)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.hidden, self.call = hidden, _Call(args, kwargs)
        return hidden


def _decoder_layers(model: PreTrainedModel) -> tuple[nn.ModuleList, str]:
    """The list of the model's decoder layers and what their names begin with."""
    count = model.config.get_text_config().num_hidden_layers
    base = trunk(model)
    names = {module: name for name, module in model.named_modules()}
    for module in base.children():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module, f"{names[module]}."
    raise ValueError(f"{type(model).__name__} has no list of {count} decoder layers, so it cannot be quantized")
