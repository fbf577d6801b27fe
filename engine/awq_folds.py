"""Where a scale can be moved from a linear layer's inputs into what gives them, without changing the function.

Scaling the inputs of a linear by 1 / s and its columns by s is no change; scaling the inputs costs nothing where they
come from a norm, whose weight takes the 1 / s, or from another linear through something that is linear in it: values
through attention to the output projection, the up projection through the gate to the down projection (Lin et al. 2023,
arXiv 2306.00978, section 3.2).

Which norm feeds which linears is seen by running the layer. The other two are known by their names. Each is then tried
with scales that are powers of two, and used only if the layer's output stays: so an unknown architecture loses a fold,
never its answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

_SAME = 0.01  # of the layer's change; a wrong fold changes a third of it and more


@dataclass(frozen=True)
class Fold:
    """A source whose outputs are divided by s [channels], and the linears whose columns are multiplied by it."""

    source: str  # names within the layer
    consumers: tuple[str, ...]
    block: str  # the innermost module that holds all consumers; "" is the layer
    offset: float = 0.0  # a norm multiplies by this plus its weight
    heads: int = 1  # query heads that share a key head; above 1, channels are heads of `size`
    size: int = 1

    def wide(self, scales: Tensor) -> Tensor:
        """The scales [channels] for the consumers' inputs [in]."""
        return scales.view(-1, 1, self.size).expand(-1, self.heads, -1).reshape(-1)

    def narrow(self, magnitudes: Tensor) -> Tensor:
        """The mean over the inputs [in] that are of one channel: [channels]."""
        return magnitudes.view(-1, self.heads, self.size).mean(1).reshape(-1)

    def apply(self, layer: nn.Module, scales: Tensor, stored: torch.dtype) -> Tensor:
        """Move the scales [channels]; those that came of it, since a norm's weight is rounded to the dtype `stored`."""
        source = layer.get_submodule(self.source)
        moved = _divide(source, scales, self.offset, stored)
        wide = self.wide(moved)
        for name in self.consumers:
            weight = layer.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            weight.copy_(weight.float() * wide)
        return moved


def find_folds(layer: nn.Module, run: Callable[[], Tensor], entry: Tensor) -> list[Fold]:
    """The folds of a decoder layer that leave what `run` gives, its output for the input `entry` (both [1, T, N])."""
    fed = _fed_by_norms(layer, run)
    folds = [Fold(source, names, _holder(names)) for source, names in fed.items()]
    for name, parent in layer.named_modules():
        folds += _within(name, parent)
    wanted = run()
    change = (wanted.float() - entry.float().to(wanted.device)).norm()
    found = []
    for fold in folds:
        offsets = (0.0,) if isinstance(layer.get_submodule(fold.source), nn.Linear) else (0.0, 1.0)
        for offset in offsets:
            trial = replace(fold, offset=offset)
            if (_tried(layer, trial, run).float() - wanted.float()).norm() <= _SAME * change:
                found.append(trial)
                break
    order = {name: number for number, (name, _) in enumerate(layer.named_modules())}
    return sorted(found, key=lambda fold: order[fold.consumers[0]])


def _fed_by_norms(layer: nn.Module, run: Callable[[], Tensor]) -> dict[str, tuple[str, ...]]:
    """For each module with a weight vector, the linears that take its output as it is."""
    given: dict[int, tuple[str, Tensor]] = {}  # by address; the tensors are held, so that none is reused
    taken: dict[str, list[str]] = {}
    hooks = []

    def give(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _module, _args, output: given.update({output.data_ptr(): (name, output)})

    def take(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            source, output = given.get(args[0].data_ptr(), ("", args[0]))
            if source and output.numel() == args[0].numel():
                taken.setdefault(source, []).append(name)

        return note

    for name, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_pre_hook(take(name)))
        elif isinstance(weight, Tensor) and weight.ndim == 1:
            hooks.append(module.register_forward_hook(give(name)))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return {source: tuple(names) for source, names in taken.items()}


def _within(name: str, parent: nn.Module) -> list[Fold]:
    """The folds from one linear of `parent` to another."""
    children = dict(parent.named_children())
    start = f"{name}." if name else ""
    found = []
    value, out = children.get("v_proj"), children.get("o_proj")
    if isinstance(value, nn.Linear) and isinstance(out, nn.Linear) and out.in_features % value.out_features == 0:
        heads = out.in_features // value.out_features
        size = int(getattr(parent, "head_dim", 1 if heads == 1 else 0))
        if size and value.out_features % size == 0:
            found.append(Fold(f"{start}v_proj", (f"{start}o_proj",), f"{start}o_proj", 0.0, heads, size))
    up, down = children.get("up_proj"), children.get("down_proj")
    if isinstance(up, nn.Linear) and isinstance(down, nn.Linear) and up.out_features == down.in_features:
        found.append(Fold(f"{start}up_proj", (f"{start}down_proj",), f"{start}down_proj"))
    return found


def _holder(names: Sequence[str]) -> str:
    """The innermost module that holds all the names."""
    if len(names) == 1:
        return names[0]
    parts = zip(*(name.split(".")[:-1] for name in names), strict=False)
    common = []
    for level in parts:
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)


@torch.no_grad()
def _tried(layer: nn.Module, fold: Fold, run: Callable[[], Tensor]) -> Tensor:
    """The layer's output with scales moved that show a wrong fold; the layer is as it was afterwards."""
    changed = [layer.get_submodule(name) for name in (fold.source, *fold.consumers)]
    saved = [{name: tensor.clone() for name, tensor in module.state_dict().items()} for module in changed]
    consumer = layer.get_submodule(fold.consumers[0]).weight
    assert isinstance(consumer, Tensor)
    channels = fold.narrow(consumer[0].float()).numel()
    scales = torch.exp2((torch.arange(channels, device=consumer.device) % 3 - 1).float())
    fold.apply(layer, scales, consumer.dtype)
    try:
        return run()
    finally:
        for module, state in zip(changed, saved, strict=True):
            module.load_state_dict(state)


@torch.no_grad()
def _divide(source: nn.Module, scales: Tensor, offset: float, stored: torch.dtype) -> Tensor:
    """Divide what a norm or a linear gives by `scales` [channels]; by what it came to be divided."""
    weight, bias = source.weight, getattr(source, "bias", None)
    assert isinstance(weight, Tensor)
    if isinstance(source, nn.Linear):
        weight.copy_(weight.float() / scales[:, None])  # it is rounded to a few bits later anyway
    else:
        before = weight.float() + offset
        weight.copy_((before / scales - offset).to(stored))
        after = weight.float() + offset
        # A channel that the norm makes zero stays zero, by whatever it is divided.
        scales = torch.where((after == 0) | (before == 0), scales, before / after)
    if isinstance(bias, Tensor):
        bias.copy_((bias.float() / scales).to(stored))
    return scales
