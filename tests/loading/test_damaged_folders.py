"""Mutated model files of every kind: success or one sentence under 500 characters, and no hang."""

import json
import random
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_checkpoints import CONFIG, write_gguf

from emsjax.errors import UserError
from emsjax.loading.build import abstract_model
from emsjax.loading.families import model_config, supported
from emsjax.loading.gguf.tokenizer import gguf_tokenizer
from emsjax.loading.hf.tokenizer import load_tokenizer
from emsjax.loading.opened import open_model
from emsjax.loading.parameters import plan_parameters
from emsjax.models.family import dotted
from emsjax.models.registry import FAMILIES
from emsjax.requests.configured import read_configured
from tests import tiny

pytestmark = pytest.mark.usefixtures("real_models")
ROUNDS = [pytest.param(500, id="500"), pytest.param(5000, id="5000", marks=pytest.mark.slow)]
ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 2**31, 2**63, 10**30, -(10**9), 0.0, 0.5, -1.5, 1e300),
    *(float("nan"), float("inf"), "", "two", "\n\n", "x" * 3000, [], [[]], ["a"], [1, "a", None]),
    *({}, {"a": {"b": 1}}, {"type": "yarn"}, {"rope_type": "linear", "factor": 0}, [None] * 2000),
]


def survives(call: Callable[[], Any], about: object) -> None:
    """Fails unless `call` returns or raises a `UserError` of one short sentence, and soon."""
    start = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            call()
    except UserError as error:
        message = str(error)
        assert 0 < len(message) < 500, about
        assert len(message.splitlines()) == 1, about
    except Exception as error:
        raise AssertionError(f"{about!r:.300}: {error!r}") from error
    assert time.monotonic() - start < 10, about


def mutated(rng: random.Random, value: Any) -> Any:
    """Returns a JSON value with one part replaced, removed, renamed or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(list(value))
        changed = dict(value)
        action = rng.random()
        if action < 0.1:
            del changed[key]
        elif action < 0.2:
            changed[str(key) + rng.choice(["_x", "\u2028", " "])] = rng.choice(ODD)
        else:
            changed[key] = mutated(rng, value[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.6:
        at = rng.randrange(len(value))
        return rng.choice([value[:at], value + value[at:], [*value[:at], mutated(rng, value[at])]])
    return rng.choice(ODD)


def text_of(rng: random.Random, value: Any) -> str:
    """Returns a mutated value as JSON, sometimes cut off or with a byte changed."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        value = mutated(rng, value)
    text = json.dumps(value)
    if rng.random() < 0.1:
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(["", "}", "[" * 5000, "\x00"]) + text[at + 1 :]
    return text


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


@pytest.mark.parametrize("count", ROUNDS)
def test_configurations(hf_dir: Path, count: int) -> None:
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
    for number in range(count):
        text = text_of(rng, seeds[number % len(seeds)])
        (hf_dir / "config.json").write_text(text)
        survives(lambda: planned(hf_dir, rng.random() < 0.02), text)


@pytest.mark.parametrize("count", ROUNDS)
def test_generation_configs(hf_dir: Path, count: int) -> None:
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

    for _ in range(count):
        text = text_of(rng, seed)
        (hf_dir / "generation_config.json").write_text(text)
        survives(read, text)


def damaged_bytes(rng: random.Random, content: bytes, header: int) -> bytes:
    """Returns a file with a few bytes of its header changed, or cut off."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(header)
        odd = rng.choice([0, 1, 255, 2**31, 2**32 - 1, 2**63, 2**64 - 1, rng.getrandbits(64)])
        piece = struct.pack("<Q", odd)[: rng.choice([1, 4, 8])]
        changed[at : at + len(piece)] = piece
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.1 else changed)


def described(writer: Any) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b", "ab", *(f"<{i}>" for i in range(61))])
    writer.add_token_types([1, 1, 1, *[3] * 61])
    writer.add_token_merges(["a b"])
    writer.add_rope_scaling_factor(2.0)
    writer.add_chat_template("{{ messages }}")


@pytest.mark.parametrize("count", ROUNDS)
def test_gguf_headers(tmp_path: Path, weights: dict[str, np.ndarray], count: int) -> None:
    rng = random.Random(3)
    content = write_gguf(tmp_path / "m.gguf", weights, extra=described).read_bytes()
    header = content.index(b"output.weight") + 60
    path = tmp_path / "damaged.gguf"

    def read() -> None:
        planned(path, rng.random() < 0.02)
        gguf_tokenizer(open_model(path, supported()).source)

    for _ in range(count):
        data = damaged_bytes(rng, content, header)
        path.write_bytes(data)
        survives(read, data[:header])


@pytest.mark.parametrize("count", ROUNDS)
def test_safetensors_headers(hf_dir: Path, count: int) -> None:
    rng = random.Random(4)
    file = hf_dir / "model.safetensors"
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    for number in range(count):
        if number % 2:
            data = damaged_bytes(rng, content, 8 + size)
        else:
            text = text_of(rng, header).encode()
            data = struct.pack("<Q", len(text)) + text + content[8 + size :]
        file.write_bytes(data)
        survives(lambda: planned(hf_dir, rng.random() < 0.05), data[:300])


@pytest.mark.parametrize("count", ROUNDS)
def test_tokenizer_files(tmp_path: Path, count: int) -> None:
    rng = random.Random(5)
    tiny.words(12).save_pretrained(tmp_path)
    names = ("tokenizer.json", "tokenizer_config.json")
    whole = {name: json.loads((tmp_path / name).read_text()) for name in names}
    for number in range(count):
        for name in names:
            (tmp_path / name).write_text(json.dumps(whole[name]))
        name = names[number % 2]
        text = text_of(rng, whole[name])
        (tmp_path / name).write_text(text)
        survives(lambda: load_tokenizer(tmp_path), text)


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
    for number in range(150):
        file = metas[number % len(metas)] if number % 2 else tmp_path / "converted" / "emsjax.json"
        whole = file.read_text()
        text = text_of(rng, json.loads(whole))
        file.write_text(text)
        survives(lambda: planned_ours(tmp_path / "converted"), text)
        file.write_text(whole)


def planned_ours(path: Path) -> None:
    opened = open_model(path, supported())
    abstract_model(opened.hf_config)
    [opened.source.read(name) for name in opened.source.shapes()]


def test_a_text_of_many_lines_is_one_sentence() -> None:
    message = str(UserError("a\n" * 10**6 + "; use another."))
    assert len(message) < 500
    assert message.splitlines() == [message]
    assert message.endswith("use another.")


def test_weights_that_are_not_there(hf_dir: Path) -> None:
    save_file({"x" * 4000: np.ones(3, np.float32)}, hf_dir / "model.safetensors")
    survives(lambda: planned(hf_dir), "a long name")
