"""Mutated checkpoints of quantised formats: weights, or one sentence that says what is wrong."""

import random
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from packed_formats import CASES
from tiny_checkpoints import write_config

from emsjax.loading.load import find_model
from tests.fuzzing import INPUTS, mutated, survives
from tests.loading.test_quantised_formats import save, written

pytestmark = pytest.mark.usefixtures("real_models")
FORMATS = ("gptq-act-order", "awq", "packed-asymmetric", "int8", "fp8-blocks", "bitsandbytes-nf4")
TYPES = (np.float32, np.int32, np.int64, np.int16, np.int8, np.uint8, ml_dtypes.float8_e4m3fn)


def read_some(directory: Path, rng: random.Random) -> None:
    """Reads some tensors in each form that their format has."""
    source = find_model(directory).source
    for name in rng.sample(sorted(source.shapes().keys() - source.truncated), 4):
        source.read(name)
        if name in source.int8:
            source.read_int8(name)
        if name in source.int4:
            source.read_int4(name)


def changed(rng: random.Random, value: np.ndarray) -> np.ndarray:
    """Returns a tensor of another shape or type, or with other bytes."""
    flat = np.array(value).reshape(-1)
    with np.errstate(invalid="ignore"):
        cast = flat.astype(rng.choice(TYPES)).reshape(value.shape)
    made = rng.choice([flat, value[None], flat[:-1], flat[:1].reshape(()), cast, cast, value])
    content = bytearray(np.array(made, order="C").tobytes())
    for _ in range(3 if content else 0):
        content[rng.randrange(len(content))] = rng.choice([0, 127, 128, 255])
    return np.frombuffer(content, made.dtype).reshape(made.shape)


def test_quantised_checkpoints(tmp_path: Path) -> None:
    rng = random.Random(7)
    for start, name in enumerate(FORMATS):
        sound, _ = written(tmp_path, CASES[name])
        read_some(tmp_path, rng)
        parts = sorted(tensor for tensor in sound if "_proj" in tensor)
        for number in range(start, INPUTS, len(FORMATS)):
            config, tensors, about = CASES[name].config, dict(sound), [name]
            if number % 4 == 0:
                config = mutated(rng, config)
                about.append(repr(config))
            else:
                for tensor in rng.sample(parts, 2):
                    about.append(tensor)
                    content = tensors.pop(tensor)
                    if rng.random() < 0.8:
                        tensors[tensor] = changed(rng, content)
            write_config(tmp_path, quantization_config=config)
            save(tmp_path, tensors)
            survives(lambda: read_some(tmp_path, rng), about)
