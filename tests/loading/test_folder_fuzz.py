"""Mutated model files of every kind: success or one sentence under 500 characters, and no hang."""

import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue
from safetensors.numpy import save_file
from tiny_checkpoints import CONFIG, write_gguf
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from emsjax.errors import UserError
from emsjax.loading.build import abstract_model
from emsjax.loading.families import model_config, supported
from emsjax.loading.gguf.architectures import ARCHITECTURES
from emsjax.loading.gguf.tokenizer import gguf_tokenizer
from emsjax.loading.hf.tokenizer import decode, encode, load_tokenizer, render
from emsjax.loading.load import load_model
from emsjax.loading.opened import open_model
from emsjax.loading.parameters import plan_parameters
from emsjax.models.family import dotted
from emsjax.models.registry import FAMILIES
from emsjax.requests.configured import read_configured
from tests import tiny
from tests.fuzzing import INPUTS, damaged_bytes, survives, text_of

pytestmark = pytest.mark.usefixtures("real_models")


def planned(path: Path, shapes_too: bool = True) -> None:
    """Does all that loading does before it reads weights; the slow part only if asked."""
    opened = open_model(path, supported())
    read_configured(opened.generation_config, opened.name)
    if not shapes_too:
        model_config(opened.hf_config)
        return
    _, abstract, weight_map = abstract_model(opened.hf_config)
    from flax import nnx

    shapes = {dotted(name): tuple(leaf.shape) for name, leaf in nnx.to_flat_state(abstract)}
    plan_parameters(shapes, weight_map, opened.source)


def test_configurations(hf_dir: Path) -> None:
    rng = random.Random(1)
    seeds = [
        CONFIG | {"rope_parameters": tiny.LLAMA3_ROPE},
        CONFIG | {"rope_scaling": tiny.YARN_ROPE},
    ]
    seeds += [
        tiny.oracle(name).config.to_dict() | {"dtype": None}
        for name in FAMILIES
        if name in tiny.TINY
    ]
    for number in range(INPUTS):
        text = text_of(rng, seeds[number % len(seeds)])
        (hf_dir / "config.json").write_text(text)
        survives(lambda: planned(hf_dir, rng.random() < 0.02), text)


def test_generation_configs(hf_dir: Path) -> None:
    rng = random.Random(2)
    seed = {
        "top_k": 5,
        "top_p": 0.5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "bad_words_ids": [[5], [6, 7]],
        "no_repeat_ngram_size": 3,
        "begin_suppress_tokens": [3],
        "forced_bos_token_id": 1,
        "forced_eos_token_id": [2, 3],
        "min_length": 4,
    }
    seed |= {"suppress_tokens": [1, 2], "min_new_tokens": 3, "eos_token_id": [2, 3], "num_beams": 1}
    from emsjax.loading.hf.config import eos_token_ids
    from emsjax.loading.opened import _generation_config

    def read() -> None:
        found = _generation_config(hf_dir, CONFIG)
        read_configured(found, "m")
        eos_token_ids(found, CONFIG)

    for _ in range(INPUTS):
        text = text_of(rng, seed)
        (hf_dir / "generation_config.json").write_text(text)
        survives(read, text)


def described(writer: Any, kind: str = "gpt2") -> None:
    """Adds a tokenizer and what else a header may have."""
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b", "ab", *(f"<{i}>" for i in range(61))])
    writer.add_token_types([1, 1, 1, *[3] * 61])
    writer.add_token_scores([-float(i) for i in range(64)])
    writer.add_token_merges(["a b"])
    writer.add_rope_scaling_factor(2.0)
    writer.add_chat_template("{{ messages }}")


def gguf_value(rng: random.Random) -> GGUFValue:
    """Returns an odd value of a type that the format has."""
    kind = rng.choice(list(GGUFValueType))
    numbers = (0, 1, 2, 3, 64, 65, 127)
    if kind == GGUFValueType.STRING:
        return GGUFValue(rng.choice(["", "two", "\n", "x" * 3000, "yarn", "linear"]), kind)
    if kind == GGUFValueType.ARRAY:
        long = [rng.choice(["a", "b a", 1.5])] * rng.choice([1, 2, 64, 2000])
        return GGUFValue(rng.choice([[1, 2], ["a"], [1.5], [["a"]], long]), kind)
    if "FLOAT" in kind.name:
        return GGUFValue(rng.choice([*numbers, -1.5, 1e38, float("nan"), float("inf")]), kind)
    return GGUFValue(rng.choice([*numbers, *([-1, -(2**7)] if kind.name[0] == "I" else [])]), kind)


def with_odd_values(rng: random.Random) -> Callable[[Any], None]:
    """Returns what replaces or removes a few values of a header."""

    def change(writer: Any) -> None:
        described(writer, rng.choice(["gpt2", "llama"]))
        if writer.arch in ("gemma3", "phi3"):
            writer.add_sliding_window(8)
        if writer.arch == "phi3":
            writer.add_rope_scaling_attn_factors(1.2)
            for name in rng.sample(["short", "long"], rng.choice([0, 1, 2])):
                factors = np.full(rng.choice([3, 8]), 1.5, np.float32)
                writer.add_tensor(f"rope_factors_{name}.weight", factors)
        values = writer.kv_data[0]
        for name in rng.sample(sorted(values), rng.choice([1, 1, 2, 3])):
            if name != "general.architecture" and rng.random() < 0.1:
                del values[name]
            else:
                values[name] = gguf_value(rng)

    return change


def test_gguf_headers(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    rng = random.Random(3)
    content = write_gguf(tmp_path / "m.gguf", weights, extra=described).read_bytes()
    header = content.index(b"output.weight") + 60
    path = tmp_path / "damaged.gguf"

    def read() -> None:
        planned(path, rng.random() < 0.02)
        use(gguf_tokenizer(open_model(path, supported()).source))

    for number in range(INPUTS):
        if number % 2:
            path.write_bytes(damaged_bytes(rng, content, header))
        else:
            write_gguf(path, weights, rng.choice(list(ARCHITECTURES)), extra=with_odd_values(rng))
        survives(read, path.read_bytes()[:header])


def test_safetensors_headers(hf_dir: Path) -> None:
    rng = random.Random(4)
    file = hf_dir / "model.safetensors"
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    for number in range(INPUTS):
        if number % 2:
            data = damaged_bytes(rng, content, 8 + size)
        else:
            text = text_of(rng, header).encode()
            data = struct.pack("<Q", len(text)) + text + content[8 + size :]
        file.write_bytes(data)
        survives(lambda: planned(hf_dir, rng.random() < 0.05), data[:300])


def byte_level() -> PreTrainedTokenizerFast:
    """Returns a tokenizer with the parts that those of published models have."""
    tokens = Tokenizer(models.BPE())
    tokens.normalizer = normalizers.NFC()
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=270, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokens.train_from_iterator([TEXT], trainer)
    pair = [(each, tokens.token_to_id(each)) for each in special]
    tokens.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=pair)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{{ bos_token }}{{ messages[0].content }}",
    )


TEXT = "w7 w8 three words"


def use(tokenizer: Any) -> None:
    """Does with a tokenizer what a run does."""
    if tokenizer is not None:
        decode(tokenizer, encode(tokenizer, TEXT, "m")[:9])
        if tokenizer.chat_template:
            render(tokenizer, [{"role": "user", "content": TEXT}], "m")


def test_tokenizer_files(tmp_path: Path) -> None:
    rng = random.Random(5)
    names = ("tokenizer.json", "tokenizer_config.json")
    seeds: list[tuple[Path, dict[str, Any]]] = []
    for number, tokenizer in enumerate((tiny.words(12), byte_level())):
        tokenizer.save_pretrained(tmp_path / str(number))
        files = {name: json.loads((tmp_path / str(number) / name).read_text()) for name in names}
        seeds.append((tmp_path / str(number), files))
    for number in range(INPUTS):
        directory, whole = seeds[number // 2 % 2]
        for name in names:
            (directory / name).write_text(json.dumps(whole[name]))
        name = names[number % 2]
        text = text_of(rng, whole[name])
        (directory / name).write_text(text)
        survives(lambda: use(load_tokenizer(directory)), text)  # noqa: B023 called at once


def indices() -> Iterator[Any]:
    yield from ([], {}, {"weight_map": 3}, {"weight_map": {"a": 1}}, {"weight_map": {"a": ["x"]}})
    yield from ({"weight_map": {"a": "../x"}}, {"weight_map": {"a": "\n" * 999}}, "x", None)
    yield {"weight_map": {str(i): f"shard-{i}" for i in range(20_000)}}


@pytest.mark.parametrize("single", ["model.safetensors", "pytorch_model.bin"])
def test_shard_indices(hf_dir: Path, single: str) -> None:
    (hf_dir / "model.safetensors").unlink()
    for index in indices():
        (hf_dir / f"{single}.index.json").write_text(json.dumps(index))
        survives(lambda: planned(hf_dir), index)


def test_manifests_and_arrays(hf_dir: Path, weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    from emsjax.loading.conversion import convert_model

    convert_model(open_model(hf_dir, supported()), tmp_path / "converted")
    rng = random.Random(6)
    metas = sorted((tmp_path / "converted").glob("params/*/.zarray"))
    for number in range(INPUTS):
        file = metas[number % len(metas)] if number % 2 else tmp_path / "converted" / "emsjax.json"
        whole = file.read_text()
        text = text_of(rng, json.loads(whole))
        file.write_text(text)
        survives(lambda: load_model(tmp_path / "converted"), text)
        file.write_text(whole)


def test_a_text_of_many_lines_is_one_sentence() -> None:
    message = str(UserError("a\n" * 10**6 + "; use another."))
    assert len(message) < 500
    assert message.splitlines() == [message]
    assert message.endswith("use another.")


def test_weights_that_are_not_there(hf_dir: Path) -> None:
    save_file({"x" * 4000: np.ones(3, np.float32)}, hf_dir / "model.safetensors")
    survives(lambda: planned(hf_dir), "a long name")
