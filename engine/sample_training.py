"""Trains the bundled model: a small Qwen3-shaped decoder that answers a customer message with a JSON label.

    python -m engine.sample_training TRAIN.jsonl DEV.jsonl OUTPUT

Both files hold `text` and `expected`; sample_examples.py reads them and learns the tokenizer. The widths are multiples
of 128 and the head size is 64, so that every attention kernel serves the model. The loss covers the answer and, at half
the weight, the message, which gives words a meaning that no label teaches. The phrases are written by hand, so
regularisation decides: dropout, random tokens within the messages, an average of the weights. Three minutes on one GPU;
the same command runs on a CPU, in many hours. Seeds are fixed, but kernels differ between devices: another machine's
weights agree in accuracy, not in bytes. Which messages are trained on is the caller's business (docs/sample.md).
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from engine.sample_examples import (
    ANSWER,
    END,
    MESSAGE,
    PAD,
    SPECIAL,
    START,
    TEMPLATE,
    Example,
    batches,
    collate,
    encode,
    learn_tokenizer,
    read,
)

CONTEXT = 1024


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a training run is made of; the defaults are the ones that made the bundled model."""

    steps: int = 3000
    batch: int = 256
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    random_tokens: float = 0.02
    message_weight: float = 0.5
    seed: int = 1
    vocabulary: int = 3072
    hidden: int = 256
    layers: int = 4


def build_model(recipe: Recipe) -> Qwen3ForCausalLM:
    """A freshly initialised model; tied embeddings, heads of size 64, half as many of them for keys as for queries."""
    heads = recipe.hidden // 64
    config = Qwen3Config(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=3 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return Qwen3ForCausalLM(config)  # type: ignore[no-untyped-call]


def add_dropout(model: Qwen3ForCausalLM, rate: float) -> None:
    """Dropout on the embeddings and on what every layer adds to the residual stream; inactive in eval mode."""

    def drop(module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        if isinstance(output, tuple):
            return functional.dropout(output[0], rate, module.training), *output[1:]
        return functional.dropout(output, rate, module.training)

    model.model.embed_tokens.register_forward_hook(drop)
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)


def loss_of(model: nn.Module, batch: Sequence[Example], recipe: Recipe, device: torch.device) -> Tensor:
    """Mean loss of the answers plus the weighted one of the messages, some of whose tokens are read as random ones."""
    ids_bt, parts_bt = (tensor.to(device) for tensor in collate(batch))
    random_bt = (parts_bt == MESSAGE) & (torch.rand(ids_bt.shape, device=device) < recipe.random_tokens)
    read_bt = torch.where(random_bt, torch.randint_like(ids_bt, len(SPECIAL), recipe.vocabulary), ids_bt)
    logits_btv = model(input_ids=read_bt).logits[:, :-1].float()
    losses = functional.cross_entropy(logits_btv.flatten(0, 1), ids_bt[:, 1:].flatten(), reduction="none")
    parts = parts_bt[:, 1:].flatten()
    answers, messages = (losses.where(parts == part, 0).sum() / (parts == part).sum() for part in (ANSWER, MESSAGE))
    return answers + recipe.message_weight * messages


@torch.no_grad()
def wrong(model: nn.Module, examples: Sequence[Example], device: torch.device) -> list[int]:
    """Indices whose greedy answer is not the expected one: greedy decoding gives the expected text exactly when every
    one of its tokens, the end included, is the most probable one after those before it."""
    model.train(False)
    missed = []
    for start in range(0, len(examples), 128):
        ids_bt, parts_bt = (tensor.to(device) for tensor in collate(examples[start : start + 128]))
        best_bt = model(input_ids=ids_bt).logits[:, :-1].argmax(-1)
        right_b = ((best_bt == ids_bt[:, 1:]) | (parts_bt[:, 1:] != ANSWER)).all(-1)
        missed += [start + row for row, right in enumerate(right_b.tolist()) if not right]
    return missed


def train(
    examples: Sequence[Example], dev: Sequence[Example], recipe: Recipe, device: torch.device
) -> Qwen3ForCausalLM:
    """A model trained by the recipe, its weights averaged over the last steps."""
    torch.manual_seed(recipe.seed)
    model = build_model(recipe)
    nn.Module.to(model, device)
    add_dropout(model, recipe.dropout)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998))  # type: ignore[no-untyped-call]
    decayed = [weight for weight in model.parameters() if weight.dim() > 1]
    plain = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    warmup = max(1, min(300, recipe.steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / recipe.steps))),
    )
    source = batches(examples, recipe.batch, random.Random(recipe.seed))
    for step in range(1, recipe.steps + 1):
        model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(model, next(source), recipe, device)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        average.update_parameters(model)
        if step % 500 == 0 or step == recipe.steps:
            share = 1 - len(wrong(average.module, dev, device)) / len(dev)
            print(f"step {step}: loss {loss.item():.4f}, dev exact match {share:.4f}", flush=True)
    assert isinstance(average.module, Qwen3ForCausalLM)
    return average.module


def save(model: Qwen3ForCausalLM, tokenizer: Tokenizer, output: Path) -> None:
    """Writes the checkpoint folder: weights in bfloat16, configs, tokenizer with its chat template."""
    nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(output)
    generation = GenerationConfig(do_sample=False, eos_token_id=END, pad_token_id=PAD)  # type: ignore[no-untyped-call]
    generation.save_pretrained(output)
    chat_tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=SPECIAL[END],
        pad_token=SPECIAL[PAD],
        additional_special_tokens=[SPECIAL[START]],
        chat_template=TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    chat_tokenizer.save_pretrained(output, save_jinja_files=False)


def main() -> None:
    """Reads the command line, trains, saves, and prints the dev rows that the saved weights get wrong."""
    parser = argparse.ArgumentParser(prog="python -m engine.sample_training")
    for name in ("train", "dev", "output"):
        parser.add_argument(name, type=Path)
    defaults = Recipe()
    for name in (field.name for field in fields(Recipe)):
        value = getattr(defaults, name)
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    settings = vars(parser.parse_args())
    train_rows, dev_rows, output = (settings.pop(name) for name in ("train", "dev", "output"))
    recipe = Recipe(**settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, dev_texts = read(train_rows), read(dev_rows)
    tokenizer = learn_tokenizer(rows[:100_000], recipe.vocabulary)
    dev = encode(tokenizer, dev_texts)
    model = train(encode(tokenizer, rows), dev, recipe, device)
    save(model, tokenizer, output)
    missed = wrong(nn.Module.float(model), dev, device)
    for index in missed:
        print("wrong:", *dev_texts[index])
    print(
        f"{sum(weight.numel() for weight in model.parameters()):,} parameters; dev exact match of the saved weights "
        f"{1 - len(missed) / len(dev):.4f} ({len(dev)} rows)"
    )


if __name__ == "__main__":
    main()
