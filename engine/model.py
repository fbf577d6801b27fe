"""Loading a transformers model for this engine: safetensors only, our attention, every weight accounted for.

The model definition is transformers' own, so any architecture whose attention goes through the attention interface
runs. Weights go from the files straight to the device, and a quantized checkpoint's are dequantized there, one by one,
or stay in 4 bits until engine.precision decides.
What the engine cannot run correctly (recurrent state, chunked attention, encoder-decoder) is refused here by
name, because the attention function alone would not notice. Checking the files of a checkpoint is left to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from engine import attention
from engine.int4_places import Int4Places
from engine.quantized import dequantized
from engine.quantized_formats import is_int4
from engine.weights import Source, checkpoint_files, open_weights

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_INT4 = "_overnight_stored_in_int4"
_LAYER_TYPES = {"full_attention", "sliding_attention"}


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of weights and activations: "auto" is float32 on CPU, bfloat16 on a GPU (float16 before Ampere).

    Raises ValueError for another name than auto, float32, bfloat16, float16.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if name not in _DTYPES:
        raise ValueError(f"engine.dtype = {name!r} is unknown; use auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    revision: str | None = None,
    trust_remote_code: bool = False,
    head: bool = True,
    weights: Mapping[str, Source] | None = None,
    packed: bool = False,
) -> PreTrainedModel:
    """Load the checkpoint in folder (or hub id) `path` in eval mode, weights in `dtype` on `device`.

    With `head` the model has its language-model head, else it ends with the last hidden state. `weights` are the
    tensors of the checkpoint, if somebody has opened them on `device` already. A local folder is
    loaded without any network access. A checkpoint quantized to int4 or FP8 in a format that `engine.quantized` reads
    is dequantized to `dtype`; with `packed`, its layers of 4 bits become Int4Linear, the head's excepted. Raises
    ValueError for an architecture or a quantization the engine cannot run, and for weights that are missing or of
    another shape; OSError where files cannot be read.
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())  # threads that read start out at device 0
    where: dict[str, Any] = {"revision": revision or "main", "local_files_only": Path(path).is_dir()}
    config = AutoConfig.from_pretrained(str(path), trust_remote_code=trust_remote_code, **where)
    check_config(config)
    loader: Any = AutoModelForCausalLM if head else AutoModel
    options = {
        "dtype": dtype,
        "device_map": {"": device},
        "attn_implementation": attention.NAME,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # refused below, by name
    }
    disable_progress_bar()  # type: ignore[no-untyped-call]
    quantization = getattr(config, "quantization_config", None)
    if trust_remote_code and loader.__name__ in (getattr(config, "auto_map", None) or {}):
        if quantization is not None:
            raise ValueError(f"model.path {path}: a quantized checkpoint with code of its own is not supported")
        options |= {"config": config, "trust_remote_code": True, "use_safetensors": True}
        model, loading = loader.from_pretrained(str(path), **options, **where)
        check_model(model)
    else:
        with ExitStack() as opened:
            sources = weights or opened.enter_context(open_weights(checkpoint_files(str(path), **where), device))
            if quantization is not None:
                del config.quantization_config
            with torch.device("meta"):
                shell = loader.from_config(config)
            check_model(shell)
            kind = type(shell)
            if quantization is not None:
                places = Int4Places(shell)
                sources = dequantized(quantization, sources, dtype, places.take if packed else None)
                kind = places.kind()
            model, loading = kind.from_pretrained(None, config=shell.config, state_dict=sources, **options)
    assert isinstance(model, PreTrainedModel)
    _check_complete(str(path), loading)
    setattr(model, _INT4, quantization is not None and is_int4(quantization))
    model.requires_grad_(False)
    model.train(False)
    return model


def stored_in_int4(model: PreTrainedModel) -> bool:
    """Whether the checkpoint that the model was loaded from holds its weights in 4 bits."""
    return bool(getattr(model, _INT4, False))


def steady_positions(model: PreTrainedModel) -> int | None:
    """Positions up to which a row's rotary embedding does not depend on its neighbours; None where it never does.

    transformers switches "longrope" and "dynamic" frequencies by the longest position of the whole batch, so a longer
    neighbour would change a row's answer. Sequences within this limit are embedded as transformers embeds them alone.
    """
    config = model.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    limits = []
    for rope in nested or [parameters]:
        kind = rope.get("rope_type", "default")
        if kind == "longrope":
            limits.append(int(rope["original_max_position_embeddings"]))
        elif "dynamic" in kind:
            limits.append(int(config.max_position_embeddings))
    return min(limits, default=None)


def check_config(config: Any) -> None:
    """Raise ValueError for an architecture whose config already says that the engine cannot run it."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"model type {config.model_type} is an encoder-decoder; a decoder-only model is needed")
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    unknown = sorted(set(getattr(text, "layer_types", None) or ()) - _LAYER_TYPES)
    if unknown:
        raise ValueError(f"model type {config.model_type} has layers of type {', '.join(unknown)}: not supported")


def check_model(model: PreTrainedModel) -> None:
    """Raise ValueError for a model class that the engine cannot run."""
    name = type(model).__name__
    if getattr(model, "_is_stateful", False):
        raise ValueError(f"{name} keeps a recurrent state beside attention, which this engine does not support")
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError(f"{name} does not use transformers' attention interface, so this engine cannot run it")


def _check_complete(path: str, loading: dict[str, Any]) -> None:
    # An encoder checkpoint may lack the pooler that its class defines and that no kind of job reads.
    missing = sorted(name for name in loading["missing_keys"] if "pooler" not in name)
    if missing:
        raise ValueError(f"model.path {path}: {len(missing)} weights are missing from the files, first {missing[0]}")
    for name, stored, expected in sorted(loading["mismatched_keys"]):
        raise ValueError(
            f"model.path {path}: weight {name} has shape {list(stored)}, not {list(expected)} of config.json"
        )
