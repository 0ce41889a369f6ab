"""Tokenizers of model directories and of GGUF metadata."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_checkpoints import write_gguf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from emsjax.errors import UserError
from emsjax.loading.gguf.file import GgufFile
from emsjax.loading.gguf.tokenizer import gguf_tokenizer
from emsjax.loading.hf.tokenizer import load_tokenizer, render
from emsjax.requests.chat import ChatOptions

Weights = dict[str, np.ndarray]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "Hello world, it's 12345 o'clock.",
    "  two  spaces\n\n\nthree lines\t tab ",
    "naïve café — 日本語 🙂 ½",
    "<|im_start|>user\nHi<|im_end|>\n",
    "",
]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


@pytest.fixture(scope="module")
def bpe() -> tuple[list[str], list[str]]:
    """Returns tokens and merges of a small byte-level vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([Path(__file__).read_text()], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return tokens, [" ".join(merge) for merge in model["merges"]]


def byte_level(tokens: list[str], merges: list[str], pre: str) -> Callable[..., None]:
    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
        writer.add_token_merges(merges)
        writer.add_unk_token_id(0)
        writer.add_pad_token_id(2)
        writer.add_chat_template(TEMPLATE)

    return extra


def tokenizer_of(path: Path, weights: Weights, extra: Callable[..., None]) -> Any:
    return gguf_tokenizer(GgufFile(write_gguf(path / "m.gguf", weights, extra=extra)))


@pytest.mark.parametrize("pre", ["smollm", "qwen2", "llama-bpe", "gpt-2", "default"])
def test_byte_level_round_trip(
    tmp_path: Path, weights: Weights, bpe: tuple[list[str], list[str]], pre: str
) -> None:
    tokenizer = tokenizer_of(tmp_path, weights, byte_level(*bpe, pre))
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("<|im_end|>", add_special_tokens=False) == [2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert (tokenizer.unk_token_id, tokenizer.pad_token_id) == (0, 2)


def test_words_are_split_as_in_qwen2(
    tmp_path: Path, weights: Weights, bpe: tuple[list[str], list[str]]
) -> None:
    from transformers import Qwen2Tokenizer

    tokens, merges = bpe
    vocab = {token: i for i, token in enumerate(tokens)}
    oracle = Qwen2Tokenizer(vocab=vocab, merges=[tuple(merge.split(" ")) for merge in merges])
    tokenizer = tokenizer_of(tmp_path, weights, byte_level(tokens, merges, "qwen2"))
    plain = [text for text in TEXTS if "<|" not in text]
    assert [tokenizer.encode(t) for t in plain] == [oracle.encode(t) for t in plain]


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", "1 2 3 4 5"),
        ("qwen2", "1 2 3 4 5"),
        ("deepseek-r1-qwen", "1 2 3 4 5"),
        ("llama-bpe", "123 45"),
        ("falcon3", "123 45"),
        ("gpt-2", "12345"),
    ],
)
def test_digits(
    tmp_path: Path, weights: Weights, bpe: tuple[list[str], list[str]], pre: str, pieces: str
) -> None:
    tokenizer = tokenizer_of(tmp_path, weights, byte_level(*bpe, pre))
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("12345")
    assert [piece for piece, _ in split] == pieces.split()


def test_chat_template_and_saving(
    tmp_path: Path, weights: Weights, bpe: tuple[list[str], list[str]]
) -> None:
    tokenizer = tokenizer_of(tmp_path, weights, byte_level(*bpe, "smollm"))
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again is not None
    messages = [{"role": "user", "content": "Hi"}]
    for one in (tokenizer, again):
        assert one.apply_chat_template(messages, tokenize=False) == "<|im_start|>Hi<|im_end|>"
    assert [again.encode(t) for t in TEXTS] == [tokenizer.encode(t) for t in TEXTS]
    assert again.eos_token_id == 2


def test_a_named_chat_template_is_used_with_tools(
    tmp_path: Path, weights: Weights, bpe: tuple[list[str], list[str]]
) -> None:
    def extra(writer: gguf.GGUFWriter) -> None:
        byte_level(*bpe, "smollm")(writer)
        writer.add_string("tokenizer.chat_template.tool_use", "{{ tools[0].name }}")

    tokenizer = tokenizer_of(tmp_path, weights, extra)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again is not None
    messages = [{"role": "user", "content": "Hi"}]
    for one in (tokenizer, again):
        assert render(one, messages, "m") == "<|im_start|>Hi<|im_end|>"
        options = ChatOptions(tools=[{"name": "f"}])
        arguments = partial(options.arguments, origin="m")
        assert render(one, messages, "m", tools=options.tools or (), arguments=arguments) == "f"


@pytest.mark.parametrize(("pre", "begins"), [("llama-bpe", True), ("qwen2", False)])
def test_begin_of_text(
    tmp_path: Path, weights: Weights, bpe: tuple[list[str], list[str]], pre: str, begins: bool
) -> None:
    tokenizer = tokenizer_of(tmp_path, weights, byte_level(*bpe, pre))
    assert (tokenizer.encode("Hi")[0] == 1) == begins


def sentencepiece(writer: gguf.GGUFWriter) -> None:
    pieces = ["▁", "h", "e", "l", "o", "ll", "he", "hell", "▁hell", "▁hello", "hello"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(len(pieces))])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(pieces))
    writer.add_unk_token_id(0)


def test_sentencepiece(tmp_path: Path, weights: Weights) -> None:
    tokenizer = tokenizer_of(tmp_path, weights, sentencepiece)
    assert tokenizer.tokenize("hello hello") == ["▁hello", "▁hello"]
    ids = tokenizer.encode("hello 🙂")
    assert ids[0] == 1  # begin of text
    assert tokenizer.convert_ids_to_tokens(ids[-4:]) == ["<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello 🙂"


def test_no_tokenizer(tmp_path: Path, weights: Weights) -> None:
    assert tokenizer_of(tmp_path, weights, lambda _: None) is None
    assert load_tokenizer(tmp_path) is None


@pytest.mark.parametrize(
    ("model", "pre", "reason"),
    [
        ("gpt2", "martian", "splits words by the rule 'martian'"),
        ("t5", "", "tokenizer of type 't5'"),
    ],
)
def test_unsupported(tmp_path: Path, weights: Weights, model: str, pre: str, reason: str) -> None:
    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model(model)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(["a"])
        writer.add_token_merges([])

    with pytest.raises(UserError, match=reason):
        tokenizer_of(tmp_path, weights, extra)


def test_damaged_tokenizer_files(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "emsjax.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer files in .* cannot be read"):
        load_tokenizer(tmp_path)
