"""Weights in 4 bits are kept in an orbax checkpoint, with their scales, offsets and orders."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from packed_formats import CASES
from tiny_checkpoints import write_gguf

from emsjax import convert
from emsjax.errors import UserError
from emsjax.loading.load import load_model
from emsjax.loading.sources.int4 import packed, unpacked
from emsjax.models.family import dotted
from tests.loading.test_quantised_formats import written

pytestmark = pytest.mark.usefixtures("real_models")


def parameters(directory: Path, quantize: str | None = "int4") -> dict[str, np.ndarray]:
    model = load_model(directory, quantize=quantize).model
    return {dotted(path): np.asarray(x[...]) for path, x in nnx.to_flat_state(nnx.state(model))}


def converted(directory: Path) -> Path:
    output = directory.parent / "converted"
    options = ["--quantize", "int4", "--dtype", "float32"]
    assert convert.main([str(directory), str(output), *options]) == 0
    return output


@pytest.mark.parametrize("form", ["packed", "awq", "gptq-act-order"])
def test_every_number_is_kept(tmp_path: Path, form: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    written(source, CASES[form])
    output = converted(source)
    assert json.loads((output / "emsjax.json").read_text())["format"] == 3
    for quantize in ("int4", None):
        expected, found = parameters(source, quantize), parameters(output, quantize)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert expected["blocks.mlp.down.kernel"].dtype == np.float32


def test_what_a_parameter_needs(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    from gguf import GGMLQuantizationType as Kind

    output = converted(write_gguf(tmp_path / "m.gguf", weights, kind=Kind.Q4_1))
    chunk = chunk_of(output / "params/blocks.mlp.down.kernel_offsets")
    sound = chunk.read_bytes()
    chunk.write_bytes(np.full(len(sound) // 4, np.nan, np.float32).tobytes())
    with pytest.raises(UserError, match=r"^blocks\.mlp\.down\.kernel_offsets in .* are not finite"):
        load_model(output)
    (output / "params/blocks.mlp.up.kernel_scales/.zarray").rename(output / "else")
    with pytest.raises(UserError, match=r"^blocks\.mlp\.up\.kernel_scales in .* must be there"):
        load_model(output)


def chunk_of(parameter: Path) -> Path:
    (chunk,) = (file for file in parameter.iterdir() if not file.name.startswith("."))
    return chunk


def test_an_order_names_each_input_once(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    written(source, CASES["gptq-act-order"])
    output = converted(source)
    names = ("blocks.attention.out.kernel_order", "blocks.mlp.down.kernel_order")
    for name in names:
        chunk = chunk_of(output / "params" / name)
        order = np.frombuffer(chunk.read_bytes(), np.int32).copy()
        order[0] = order[1]
        chunk.write_bytes(order.tobytes())
    with pytest.raises(UserError, match=f"^{', '.join(names)} in .* must name each input once"):
        load_model(output)


def test_two_numbers_make_a_byte() -> None:
    values = np.arange(-8, 8, dtype=np.int8).reshape(2, 8)
    assert packed(values).dtype == np.uint8
    assert packed(values)[0, 0] == 0x98  # -8 in the low bits, -7 above
    np.testing.assert_array_equal(unpacked(packed(values)), values)
