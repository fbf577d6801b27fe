"""What config.json and its companions say about a model, under the many names that architectures use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from data.errors import InputError

Pooling: TypeAlias = Literal["mean", "last", "cls"]

_CONTEXT = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")
_ENCODERS = ("bert", "electra", "mpnet", "ernie", "nezha", "funnel", "luke", "esm", "xlnet", "splinter")
# Position ids of these start after the padding id, so that many positions are never used.
_OFFSET = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "xmod", "longformer", "data2vec-text")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, empty if the file does not exist. InputError if it is something else."""
    if path.exists() and not path.is_file():  # opening a FIFO would wait for ever
        raise InputError(f"{path} is not a regular file")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object")
    return value


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the language model: multimodal models nest it."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def context_length(folder: Path, config: Mapping[str, Any]) -> int:
    """Tokens of prompt and answer together. InputError if no file of the folder tells.

    The least of what the positions allow and what sentence-transformers was told; a stretched rotary embedding counts
    as stretched. The tokenizer's model_max_length serves only models without positions of their own.
    """
    try:
        length = _context_length(folder, config)
    except (ValueError, TypeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder / 'config.json'} gives no context length that can be read: {error}") from error
    if length < 1:
        raise InputError(f"{folder / 'config.json'} gives a context length of {length}")
    return length


def _context_length(folder: Path, config: Mapping[str, Any]) -> int:
    inner = text_config(config)
    positions = next((inner[name] for name in _CONTEXT if isinstance(inner.get(name), int)), None)
    if positions is not None:
        positions = _stretched(inner, positions)
        if config.get("model_type") in _OFFSET:
            positions -= int(config.get("pad_token_id", 1)) + 1
    else:
        declared = read_json(folder / "tokenizer_config.json").get("model_max_length")
        if not isinstance(declared, int) or declared > 1 << 30:
            raise InputError(f"{folder / 'config.json'} gives no context length: set max_position_embeddings in it")
        positions = declared
    sentence = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    return int(min(positions, sentence) if isinstance(sentence, int) else positions)


def _stretched(config: Mapping[str, Any], positions: int) -> int:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        return positions
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    if isinstance(factor, int | float) and kind in ("linear", "dynamic"):
        return int(positions * factor)
    original = rope.get("original_max_position_embeddings")
    if isinstance(factor, int | float) and kind == "yarn" and isinstance(original, int):
        return max(positions, int(original * factor))
    return positions


def stop_ids(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """End-of-sequence ids from generation_config.json, else from config.json; never from the tokenizer."""
    generation = read_json(folder / "generation_config.json").get("eos_token_id")
    for found in (generation, config.get("eos_token_id"), text_config(config).get("eos_token_id")):
        if isinstance(found, int):
            return (found,)
        if isinstance(found, list) and found:
            if not all(type(number) is int for number in found):
                raise InputError(f"eos_token_id in {folder} is not a list of token ids")
            return tuple(found)
    return ()


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether the model attends in both directions, by its type; everything unknown is taken for a decoder."""
    kind = str(config.get("model_type", ""))
    return any(name in kind for name in _ENCODERS) and not config.get("is_decoder", False)


def pooling(folder: Path, config: Mapping[str, Any]) -> tuple[Pooling, bool]:
    """How token states become one embedding, "mean", "last" or "cls", and whether it is scaled to length 1.

    From sentence-transformers' files where they exist; else mean for encoders, last for decoders, scaled. InputError
    for a module or a pooling that is none of these, because leaving it out would change every embedding.
    """
    modules = folder / "modules.json"
    if not modules.is_file():
        return ("mean" if is_encoder(config) else "last"), True
    try:
        parts = [(str(part["type"]).rsplit(".", 1)[-1], str(part["path"])) for part in json.loads(modules.read_text())]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{modules} is not a valid list of modules") from error
    other = [name for name, _ in parts if name not in ("Transformer", "Pooling", "Normalize")]
    paths = [path for name, path in parts if name == "Pooling"]
    if other or len(paths) != 1 or ".." in paths[0] or Path(paths[0]).is_absolute():
        raise InputError(f"{modules} has modules that embed does not know: {', '.join(other) or 'no single Pooling'}")
    options = read_json(folder / paths[0] / "config.json")
    modes = {name.removeprefix("pooling_mode_") for name, on in options.items() if "pooling_mode_" in name and on}
    modes = modes or {str(options.get("pooling_mode", "mean"))}
    names: dict[str, Pooling] = {
        "mean_tokens": "mean",
        "mean": "mean",
        "cls_token": "cls",
        "cls": "cls",
        "lasttoken": "last",
    }
    if len(modes) != 1 or not modes <= names.keys():
        raise InputError(f"{folder / paths[0] / 'config.json'}: pooling {', '.join(sorted(modes))} is not known")
    return names[modes.pop()], any(name == "Normalize" for name, _ in parts)
