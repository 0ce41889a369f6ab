"""GGUF's 4 bits are kept: they stand for the numbers that the `gguf` package makes of them."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from tiny_checkpoints import permuted, write_gguf

from emsjax.errors import UserError
from emsjax.loading import build
from emsjax.loading.gguf.file import GgufFile
from emsjax.loading.gguf.int4 import read_int4
from emsjax.loading.gguf.scales import are_finite
from emsjax.loading.load import find_model, load_model
from emsjax.loading.sources.int4 import Int4
from emsjax.pallas_kernels.quantised import Grouped, floats
from tests.models.logits import our_logits

pytestmark = pytest.mark.usefixtures("real_models")

Weights = dict[str, np.ndarray]
QUERIES = "model.layers.0.self_attn.q_proj.weight"


def blocks(kind: Kind, rows: int, num_in: int, smallest: float = 0.01) -> np.ndarray:
    """Returns rows of a type: random bytes, but sound scales, of which some are negative."""
    rng = np.random.default_rng(0)
    inputs, nbytes = gguf.GGML_QUANT_SIZES[kind]
    made = rng.integers(0, 256, (rows, num_in // inputs, nbytes), np.uint8)
    for place in range(1 if kind == Kind.Q4_0 else 2):
        scales = np.exp(rng.uniform(np.log(smallest), np.log(0.04), made.shape[:2]))
        scales = (scales * rng.choice([-1, 1], scales.shape)).astype("<f2")
        made[..., 2 * place : 2 * place + 2] = scales[..., None].view(np.uint8)
    return made.reshape(rows, -1)


def wide(found: Int4) -> np.ndarray:
    scales, offsets = (None if part is None else part.T for part in found[1:])
    values: Any = found.values
    return np.asarray(floats(Grouped(values, scales, offsets)))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q4_K])
def test_numbers_are_those_of_the_package(tmp_path: Path, kind: Kind) -> None:
    """Rows of queries are turned, and numbers, scales and offsets with them."""
    data = blocks(kind, 64, 512)

    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("blk.0.attn_q.weight", data, raw_dtype=kind)
        writer.add_tensor("blk.0.ffn_up.weight", data, raw_dtype=kind)

    file = GgufFile(write_gguf(tmp_path / "m.gguf", {}, extra=extra))
    assert file.int4.keys() == {QUERIES, "model.layers.0.mlp.up_proj.weight"}
    meant = gguf.dequantize(data, kind)
    up = file.read_int4("model.layers.0.mlp.up_proj.weight")
    np.testing.assert_array_equal(wide(up), meant)
    assert up.scales.shape == (64, 512 // 32)
    assert (up.offsets is None) == (kind == Kind.Q4_0)
    np.testing.assert_array_equal(wide(file.read_int4(QUERIES)), file.read(QUERIES))
    assert not np.array_equal(file.read(QUERIES), meant)


def test_scales_and_minima_of_very_different_sizes() -> None:
    """Then float32 rounds their sum, the offset, but no more than it rounds the weights."""
    data = blocks(Kind.Q4_K, 64, 512, smallest=1e-6)
    found, meant = wide(read_int4(data, Kind.Q4_K)), gguf.dequantize(data, Kind.Q4_K)
    assert not np.array_equal(found, meant)
    largest = np.abs(meant).max(axis=1, keepdims=True)
    assert (np.abs(found - meant) <= 2**-23 * largest).all()


def kernels(model: Any) -> dict[str, Any]:
    attention, mlp = model.blocks.attention, model.blocks.mlp
    return {"qkv": attention.qkv, "out": attention.out, "up": mlp.up, "down": mlp.down}


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1])
def test_a_model_is_the_same_in_4_bits(tmp_path: Path, weights: Weights, kind: Kind) -> None:
    path = write_gguf(tmp_path / "m.gguf", weights, kind=kind)
    model, plain = load_model(path, quantize="int4").model, load_model(path).model
    for name, module in kernels(model).items():
        assert module.kernel[...].dtype == "int4"
        expected = kernels(plain)[name].kernel[...]
        np.testing.assert_array_equal(floats(module.weights), expected, err_msg=name)
    tokens = np.random.default_rng(0).integers(3, 64, (2, 20))
    expected = our_logits(plain, tokens, 20)
    found = our_logits(model, tokens, 20)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=1e-4)


def test_an_accelerator_keeps_what_its_kernels_read(
    tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 and 96 inputs are too few, unless an option asks for it."""
    path = write_gguf(tmp_path / "m.gguf", weights, kind=Kind.Q4_1)
    monkeypatch.setattr(build, "_floats_are_faster", lambda: False)
    assert {str(m.kernel[...].dtype) for m in kernels(load_model(path).model).values()} == {
        "float32"
    }
    monkeypatch.setattr(build, "LANES", 32)
    assert {str(m.kernel[...].dtype) for m in kernels(load_model(path).model).values()} == {"int4"}


def test_a_product_of_mixed_types_is_not_kept(tmp_path: Path, weights: Weights) -> None:
    """And if that leaves none, a request to keep 4 bits is refused."""
    opened = find_model(write_gguf(tmp_path / "m.gguf", weights, kind=Kind.Q4_0))
    int4 = opened.source.int4
    opened.source.int4 = {n: g for n, g in int4.items() if n != "model.layers.1.mlp.up_proj.weight"}
    _, params = build.read_weights(opened, "float32", quantize="int4")
    mlp = params["blocks"]["mlp"]
    assert (mlp["up"]["kernel"][...].dtype, mlp["down"]["kernel"][...].dtype) == ("float32", "int4")
    opened.source.int4 = {n: g for n, g in int4.items() if ".layers.1." not in n}
    with pytest.raises(UserError, match="no product whose tensors all are, in all layers"):
        build.read_weights(opened, "float32", quantize="int4")


KINDS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "IQ4_XS"]
KINDS += ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


def sound_blocks(kind: Kind, rows: int, num_in: int) -> np.ndarray:
    """Returns rows of a type: random bytes, but those of which a number is not finite again."""
    rng = np.random.default_rng(0)
    inputs, nbytes = gguf.GGML_QUANT_SIZES[kind]
    made = rng.integers(0, 256, (rows * num_in // inputs, nbytes), np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        while not (sound := np.isfinite(gguf.dequantize(made, kind)).all(axis=1)).all():
            made[~sound] = rng.integers(0, 256, (int((~sound).sum()), nbytes), np.uint8)
    return made.reshape(rows, -1)


@pytest.mark.parametrize("name", KINDS)
def test_weights_of_every_type_are_those_of_the_package(tmp_path: Path, name: str) -> None:
    data = sound_blocks(Kind[name], 64, 256)

    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("blk.0.attn_q.weight", data, raw_dtype=Kind[name])
        writer.add_tensor("blk.0.ffn_up.weight", data, raw_dtype=Kind[name])

    file = GgufFile(write_gguf(tmp_path / "m.gguf", {}, extra=extra))
    meant = gguf.dequantize(data, Kind[name])
    np.testing.assert_array_equal(file.read("model.layers.0.mlp.up_proj.weight"), meant)
    np.testing.assert_array_equal(permuted(QUERIES, file.read(QUERIES), 4, 2), meant)


@pytest.mark.parametrize("name", KINDS)
def test_scales_are_where_they_are_looked_for(name: str) -> None:
    """A number there that is not finite makes weights that are not, and no other does."""
    kind = Kind[name]
    _, nbytes = gguf.GGML_QUANT_SIZES[kind]
    for place in range(0, nbytes, 2):
        block = np.zeros((1, nbytes), np.uint8)
        block[0, place : place + 2] = np.array([np.inf], np.float16).view(np.uint8)
        with np.errstate(invalid="ignore"):
            weights = gguf.dequantize(block, kind)
        assert are_finite(block, kind) == np.isfinite(weights).all(), place


@pytest.mark.parametrize("quantize", ["int4", None])
def test_a_scale_that_is_not_finite(tmp_path: Path, weights: Weights, quantize: str | None) -> None:
    path = write_gguf(tmp_path / "m.gguf", weights, kind=Kind.Q4_0)
    content, names = bytearray(path.read_bytes()), (QUERIES, "model.layers.2.mlp.up_proj.weight")
    for name in names:
        where = int(GgufFile(path)._tensors[name].data_offset)
        content[where : where + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{', '.join(names)} in .*: scales are not finite"):
        load_model(path, quantize=quantize)
