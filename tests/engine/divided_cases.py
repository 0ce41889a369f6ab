"""Cases for `test_divided.py`, which runs them in a process with eight devices."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import save_file

from emsjax import LLM, SamplingParams, StructuredOutputsParams, build_engine
from emsjax.bench import __main__ as bench
from emsjax.bench.records import read_records
from emsjax.costs.measure import measure_costs
from emsjax.engine.devices import SAME, shared_by
from emsjax.engine.engine import Engine
from emsjax.errors import UserError
from emsjax.loading import fit
from emsjax.loading.build import shape_of_model
from emsjax.loading.families import model_config
from emsjax.loading.load import find_model, load_model
from emsjax.models.config import Experts
from emsjax.models.division import share_of
from emsjax.models.sizes import decoder_sizes
from emsjax.sampling.choice import make_choice
from emsjax.sampling.choose import choose
from emsjax.sampling.rows import rows_after
from emsjax.sampling.state import admit_choice, empty_sampling, note_tokens
from emsjax.sampling.vocabulary import DividedVocabulary
from emsjax.shapes import SHARDS
from tests import tiny
from tests.engine.collectives import check_no_copy_of_the_share, collectives, overtaking
from tests.engine.setup import (
    check_greedy,
    jobs,
    make_drafter,
    make_engine,
    oracle_model,
    run_all,
)
from tests.engine.switches import PLAIN, SWITCHES
from tests.ladders import one_rung, two_rungs, two_rungs_for
from tests.loading.packed_formats import CASES as PACKED
from tests.loading.test_quantised_experts import written as write_experts
from tests.loading.tiny_checkpoints import llama_weights, write_config
from tests.models.logits import our_logits

SLOW = pytest.mark.slow
# Compiled in a hurry, the cache's scatter is a loop.
AS_FOR_USERS = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
# Of a tiny model that eight devices can share, with fewer key/value heads than devices.
tiny.TINY["eight"] = ("llama", tiny.LLAMA_SIZES | {"num_attention_heads": 8, "head_dim": 8})


@pytest.fixture(autouse=True)
def _short_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Overrides that of other tests: a rung for several devices takes even longer to compile."""
    monkeypatch.setattr(build_engine, "ladder_for", two_rungs_for)


def test_there_are_eight_devices():
    assert len(jax.devices()) == 8


@pytest.mark.parametrize(
    ("name", "drafter", "number"),
    [
        ("llama", "prompt-lookup", 2),
        ("llama3", "tree", 4),
        ("eight", "none", 8),
        *(
            pytest.param(*case, marks=SLOW)
            for case in (
                ("qwen2-mixed", "combined", 2),
                ("llama", "draft-model", 2),
                ("llama-tied", "own-layers", 2),
            )
        ),
    ],
)
def test_texts_are_those_of_transformers(name: str, drafter: str, number: int):
    """Through three slots, so that slots are refilled and prompts are read beside other texts."""
    devices = shared_by(number)
    model = oracle_model(name, devices)
    # Every device has all of a draft model.
    drafts_for = oracle_model(name) if drafter == "draft-model" else model
    costs = None if drafter == "none" else 0.5
    chosen = make_drafter(drafts_for, drafter)
    engine = make_engine(model, chosen, 3, costs=costs, devices=devices, make=two_rungs)
    results = run_all(engine, jobs(8))
    check_greedy(tiny.oracle(name), results)
    assert drafter == "none" or sum(r.metrics.drafted_tokens for r in results) > 0


@pytest.mark.parametrize("experts", [None, Experts(4, 2, 256, normalised=True)])
def test_a_step_exchanges_two_sums_a_layer_and_one_choice(experts: Experts | None):
    devices = shared_by(2)
    config = replace(PLAIN, experts=experts)
    model = shape_of_model(config, jnp.dtype(jnp.float32), devices=devices)
    engine = make_engine(
        model, "prompt-lookup", 8, capacity=2048, costs=1.0, devices=devices, make=one_rung
    )
    compiled = engine.lower().compile(AS_FOR_USERS)
    rows, width = engine.ladder[0].capacity, PLAIN.hidden_size
    assert collectives(compiled.as_text()) == {
        f"all-reduce f32[{rows},{width}]": 3,
        f"all-gather s32[2,2,{rows}]": 1,
    }
    check_no_copy_of_the_share(engine, compiled, "scatter")


@SLOW
def test_sampling_exchanges_no_logits():
    devices = shared_by(4)
    model = shape_of_model(PLAIN, jnp.dtype(jnp.float32), devices=devices)
    engine = make_engine(model, "none", 8, capacity=2048, devices=devices, make=one_rung)
    found = collectives(engine.lower(sampling=True).compile().as_text())
    sizes = [
        np.prod([int(size) for size in shape.partition("[")[2].rstrip("]").split(",") if size])
        for _, shape in (kind.split(" ") for kind in found)
    ]
    rows = engine.ladder[0].capacity
    # The most is sent to find the 128 likeliest tokens.
    assert max(sizes) == 4 * 2 * rows * 128 < rows * PLAIN.vocab_size


def test_what_differs_between_devices_cannot_pass_for_the_same():
    def different() -> jax.Array:
        return jax.lax.axis_index(SHARDS)

    program = shared_by(2).program(different, (), SAME)
    with pytest.raises(ValueError, match="replicat"):
        program.lower()


def test_what_may_overtake_a_branch_is_found():
    """As devices of a CPU do, which then take one exchange for another."""

    def if_wanted(wanted: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.cond(wanted, lambda: jax.lax.psum(x, SHARDS), lambda: jnp.zeros(4))

    def both(x: jax.Array, wanted: jax.Array, in_turn: bool) -> tuple[jax.Array, jax.Array]:
        first = if_wanted(wanted, x)
        return first, if_wanted(wanted, x + first if in_turn else x + 1)

    for in_turn in (True, False):
        function = partial(both, in_turn=in_turn)
        program = shared_by(2).program(function, (PartitionSpec(SHARDS), SAME), SAME)
        text = program.lower(jnp.ones(8), jnp.array(True)).compile().as_text()
        assert len(overtaking(text)) == (0 if in_turn else 1), text


def choose_in_parts(number: int, logits: np.ndarray, rows: Any, state: Any) -> Any:
    """Chooses as devices do that have a part of the logits each."""
    choosing = partial(choose, vocabulary=DividedVocabulary(logits.shape[1]))
    return in_parts(number, choosing, logits, rows, state)


def in_parts(
    number: int, function: Callable[..., Any], logits: np.ndarray, rows: Any, state: Any
) -> Any:
    """Calls a function on devices with a part of the logits each, padded as a model pads them."""
    padding = ((0, 0), (0, number * 128 - logits.shape[1]))
    padded = np.pad(logits, padding, constant_values=-np.inf)
    places = PartitionSpec(None, SHARDS), SAME, SAME
    program = shared_by(number).program(function, places, SAME)
    compiled = program.lower(padded, rows, state).compile()
    assert not overtaking(compiled.as_text())
    return compiled(padded, rows, state)


@pytest.mark.parametrize("number", [2, 8])
def test_the_likeliest_token_of_parts_is_that_of_all_logits(number: int):
    rng = np.random.default_rng(number)
    logits = rng.normal(size=(64, 203)).astype(np.float32)
    logits[:16] = np.round(logits[:16])  # ties
    for row, bad in ((16, np.nan), (17, np.inf), (18, -np.inf), (19, np.nan)):
        logits[row, rng.integers(0, 203)] = bad
    logits[19] = np.where(np.isnan(logits[19]), np.nan, -np.inf)
    logits[20] = -np.inf
    state = _Slots(None)
    alone = choose(jnp.asarray(logits), None, state).tokens  # type: ignore[arg-type]
    np.testing.assert_array_equal(choose_in_parts(number, logits, None, state).tokens, alone)
    assert set(np.flatnonzero(np.asarray(alone) < 0)) == {16, 17, 19, 20}


@jax.tree_util.register_dataclass
@dataclass
class _Slots:
    """The part of the state of all slots that choosing reads."""

    sampling: Any
    live: Any = None
    tokens: Any = None
    lens: Any = None
    stop_ids: Any = None


BIAS = np.zeros(303, np.float32)
BIAS[[5, 140, 302]] = 4.0, -np.inf, 2.0
CHOICES = (
    {"temperature": 0.8},
    {"temperature": 1.2, "top_p": 0.7, "logprobs": True},
    {"temperature": 1.0, "top_k": 7, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 200, "min_p": 0.01},
    {"repetition_penalty": 1.5, "frequency_penalty": 0.3, "presence_penalty": 0.2, "min_len": 99},
    {"temperature": 0.7, "bias": BIAS, "no_repeat_ngram_size": 2, "logprobs": True},
    {"words": ((4, 5), (8, 9, 290)), "logprobs": True},
    {"temperature": 0.9, "scheduled": ((12, 7, True), (12, 280, True), (13, 150, False))},
)


def sampling_slots() -> tuple[Any, Any]:
    """Returns eight rows for each of `CHOICES`, and the state of slots with these."""
    rng, slots, length = np.random.default_rng(0), len(CHOICES), 12
    vocab_size = len(BIAS)
    text = rng.integers(0, vocab_size, (slots, 32)).astype(np.int32)
    text[6, 9:12], text[6, 11] = (1, 8, 9), 9
    sampling = empty_sampling(slots, 32, jnp.zeros(vocab_size, jnp.uint8))
    for slot, given in enumerate(CHOICES):
        choice = make_choice(seed=slot, **given)
        sampling = admit_choice(sampling, jnp.int32(slot), choice, jnp.asarray(text[slot]), 8)
    sampling = note_tokens(sampling, jnp.asarray(text[:, 8:12]), jnp.full(slots, 4, jnp.int32))
    state = _Slots(
        sampling,
        live=jnp.ones(slots, bool),
        tokens=jnp.asarray(text),
        lens=jnp.full(slots, length, jnp.int32),
        stop_ids=jnp.full((slots, 4), 200, jnp.int32),
    )
    repeated = np.repeat(np.arange(slots, dtype=np.int32), 8)
    after = rows_after(state.tokens, state.lens, jnp.zeros((slots, 1), jnp.int32), jnp.int32(0))
    return jax.tree.map(lambda x: x[repeated], after), state


def test_a_sampled_token_of_parts_is_that_of_all_logits():
    """With every setting, in a batch of all."""
    rows, state = sampling_slots()
    size, rng = (8 * len(CHOICES), len(BIAS)), np.random.default_rng(1)
    logits = (4 * rng.normal(size=size)).astype(np.float32)
    alone = jax.jit(choose)(logits, rows, state)
    parts = choose_in_parts(4, logits, rows, state)
    np.testing.assert_array_equal(parts.tokens, alone.tokens)
    assert len(set(np.asarray(alone.tokens).tolist())) > 20
    np.testing.assert_array_equal(parts.logprobs.rank, alone.logprobs.rank)
    np.testing.assert_array_equal(parts.logprobs.top_ids, alone.logprobs.top_ids)
    for name in ("chosen", "top"):
        ours, theirs = getattr(parts.logprobs, name), getattr(alone.logprobs, name)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@SLOW
def test_methods_are_compared_over_devices(tmp_path: Path):
    """Every text is that of plain decoding; the parts of a step are not timed."""
    file = tmp_path / "in.jsonl"
    ids = ([7, 8, 9, 7, 8], [11, 12])
    file.write_text("".join(f'{{"prompt_token_ids": {each}}}\n' for each in ids))
    options = ["--model", str(tiny.checkpoint("llama3")), "--input", str(file)]
    options += ["--tensor-parallel", "2", "--methods", "ems,ems-fixed,vanilla", "--repeats", "1"]
    options += ["--batch-sizes", "2", "--prompts", "2", "--max-tokens", "12"]
    assert bench.main([*options, "--output", str(tmp_path / "out")]) == 0
    records = read_records(tmp_path / "out" / "results.json")
    assert [each["error"] for each in records] == [None] * 4
    assert {each["tokens"] for each in records} == {24}
    assert {each["prompts_differing"] for each in records} == {0}
    assert all(each["device"].startswith("2 times cpu ") for each in records)
    assert all(each["parts"] is None for each in records)


@SLOW
def test_costs_are_measured():
    devices = shared_by(2)
    model = oracle_model("llama3", devices)
    engine = make_engine(model, "prompt-lookup", 2, costs=0.5, devices=devices, make=two_rungs)
    assert (measure_costs(engine).costs.rungs[:1] > 0).all()


def test_sizes_are_those_of_one_device():
    for config in (PLAIN, *SWITCHES.values()):
        for number in (2, 8):
            model = shape_of_model(config, jnp.dtype(jnp.bfloat16), devices=shared_by(number))
            expected = decoder_sizes(share_of(config, number), 2, "cpu")
            assert model.sizes == expected


def test_auto_takes_as_few_devices_as_hold_the_model(monkeypatch: pytest.MonkeyPatch):
    opened = find_model(tiny.checkpoint("llama3"))
    options = {"dtype": "float32", "quantize": None, "kv_dtype": None}
    config = model_config(opened.hf_config)

    def fewest(free: int) -> int:
        monkeypatch.setattr(fit, "free_bytes", lambda: free)
        return fit.fewest_devices(opened, num_slots=2, max_model_len=200, **options)

    sizes = [decoder_sizes(share_of(config, number), 4, "cpu") for number in (1, 2, 4)]
    needed = [each.weights_bytes + 2 * 256 * each.token_bytes for each in sizes]
    assert needed == sorted(needed, reverse=True)
    for number, bytes_needed in zip((1, 2, 4), needed, strict=True):
        assert fewest(int(bytes_needed / 0.85) + 1) == number
    with pytest.raises(UserError, match="GiB on each of 4 devices"):
        fewest(int(needed[-1] / 0.85) - 1)


@pytest.mark.parametrize(
    ("form", "quantize"), [("int8", None), ("awq", "int4"), ("awq", None), ("int8", "none")]
)
def test_auto_knows_what_a_checkpoint_has_quantised(
    tmp_path: Path, form: str, quantize: str | None, monkeypatch: pytest.MonkeyPatch
):
    """A model whose weights are wide in the end needs more than one that keeps int8 or 4 bits."""
    write_quantised(tmp_path, form)
    sizes = load_model(tmp_path, quantize=quantize).model.sizes
    needed = sizes.weights_bytes + 2 * 256 * sizes.token_bytes
    options = {"dtype": "auto", "quantize": quantize, "kv_dtype": None}
    for more in (1, -1):
        monkeypatch.setattr(fit, "free_bytes", lambda more=more: int(needed / 0.85) + more)
        found = fit.fewest_devices(find_model(tmp_path), num_slots=2, max_model_len=200, **options)
        assert (found == 1) == (more > 0)


@pytest.mark.parametrize(("name", "number"), [("opt-350m", 2), ("olmo2", 2), ("gpt-oss", 4)])
def test_logits(name: str, number: int):
    """Texts show less, but `divided_family_cases` has those of every family."""
    tokens = np.random.default_rng(0).integers(3, tiny.VOCAB_SIZE, (3, 40))
    devices = shared_by(number)
    divided = load_model(tiny.checkpoint(name), devices=devices).model
    alone = our_logits(oracle_model(name), tokens, 20)
    np.testing.assert_allclose(
        our_logits(divided, tokens, 20, devices), alone, atol=1e-4, rtol=1e-4
    )
    assert np.abs(alone).max() > 0.5


def text_of(devices: int, params: SamplingParams, **options: Any) -> list[list[int]]:
    llm = LLM(
        str(tiny.checkpoint("llama3")),
        max_batch_size=2,
        max_model_len=200,
        tensor_parallel_size=devices,
        planner=False,
        **options,
    )
    outputs = llm.generate([[7, 8, 9, 7, 8], [11], [20, 21, 22]], params, use_tqdm=False)
    return [[*o.outputs[0].token_ids] for o in outputs]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"quantize": "int8"}, marks=SLOW),
        pytest.param({"kv_dtype": "int8"}, marks=SLOW),
        pytest.param({"exact": True}, marks=SLOW),
    ],
    ids=str,
)
def test_greedy_text_of_other_engines_is_that_of_one_device(options: dict):
    params = SamplingParams(max_tokens=24)
    assert text_of(2, params, **options) == text_of(1, params, **options)


def write_quantised(directory: Path, form: str = "awq") -> None:
    case, tensors = PACKED[form], {}
    write_config(directory, quantization_config=case.config)
    for name, value in llama_weights().items():
        parts = case.write(*value.shape)[0] if "_proj" in name else {"weight": value}
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.{part}": np.array(held, order="C") for part, held in parts.items()}
    save_file(tensors, directory / "model.safetensors")


def divided_in_4_bits(directory: Path, number: int) -> Any:
    """Returns a model that devices share, after comparing its logits with those of one device."""
    tokens, devices = np.random.default_rng(0).integers(3, 64, (2, 20)), shared_by(number)
    divided = load_model(directory, quantize="int4", devices=devices).model
    alone = our_logits(load_model(directory, quantize="int4").model, tokens, 20)
    np.testing.assert_allclose(
        our_logits(divided, tokens, 20, devices), alone, atol=1e-4 * np.abs(alone).max(), rtol=1e-4
    )
    return divided


@pytest.mark.parametrize("number", [2, pytest.param(4, marks=SLOW)])
def test_logits_of_4_bit_weights(tmp_path: Path, number: int):
    """Groups of 32 of 96 inputs are not those of 48 or 24."""
    write_quantised(tmp_path)
    blocks = divided_in_4_bits(tmp_path, number).blocks
    assert blocks.mlp.down.kernel.dtype == (jnp.int4 if number == 2 else jnp.float32)
    assert blocks.attention.out.kernel_scales.shape == (3, number, 64)


def test_logits_of_4_bit_weights_with_inputs_in_another_order(tmp_path: Path):
    """Devices that have some of the inputs lack those of others, so these products have floats."""
    write_quantised(tmp_path, "gptq-act-order")
    mlp = divided_in_4_bits(tmp_path, 2).blocks.mlp
    assert mlp.down.kernel.dtype == jnp.float32
    assert mlp.up.kernel_order.shape == (3, 64)


@SLOW
def test_logits_of_experts_in_4_bits(tmp_path: Path):
    """Groups of 32 of 32 inputs are not those of 16."""
    write_experts(tmp_path, "mixtral", "awq")
    mlp = divided_in_4_bits(tmp_path, 2).blocks.mlp
    assert mlp.up.kernel.dtype == mlp.down.kernel.dtype == jnp.int4
    assert mlp.down.kernel_scales.shape == (2, 3, 2, 64)


@SLOW
def test_sampled_text_is_that_of_one_device():
    params = SamplingParams(
        max_tokens=24, temperature=0.9, top_p=0.9, seed=3, repetition_penalty=1.1, logprobs=2
    )
    assert text_of(2, params) == text_of(1, params)


def test_structured_outputs_are_those_of_one_device(tmp_path: Path):
    """The bits of a device's tokens are a part of the words that the table has."""
    directory = str(tiny.letter_checkpoint("llama3", tmp_path / "m"))
    outputs = StructuredOutputsParams(regex="(abc|[d-f]{2,5}) [0-9]{1,12}")
    params = [
        SamplingParams(max_tokens=24, temperature=each, seed=3, structured_outputs=outputs)
        for each in (0.0, 0.9)
    ]
    texts = []
    for number in (1, 4):
        llm = LLM(directory, max_batch_size=2, max_model_len=200, tensor_parallel_size=number)
        found = llm.generate(["abc", "xyz"], params, use_tqdm=False)
        texts.append([each.outputs[0].text for each in found])
    assert texts[0] == texts[1]
    assert all(re.fullmatch(outputs.regex or "", text) for text in texts[0])


@SLOW
def test_log_probabilities_of_a_prompt_are_those_of_one_device():
    engines = {number: oracle_engine(number) for number in (1, 2)}
    prompt = np.random.default_rng(3).integers(3, tiny.VOCAB_SIZE, 150).tolist()
    alone, shared = (engine.score(prompt) for engine in engines.values())
    np.testing.assert_array_equal(shared.rank, alone.rank)
    np.testing.assert_array_equal(shared.top_ids, alone.top_ids)
    np.testing.assert_allclose(shared.chosen, alone.chosen, atol=1e-4)
    np.testing.assert_allclose(shared.top, alone.top, atol=1e-4)


def oracle_engine(number: int) -> Engine:
    devices = shared_by(number)
    return make_engine(oracle_model("llama", devices), "none", 2, devices=devices)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (9, "tensor_parallel_size=9 needs as many devices, and jax sees 8 devices; give at most 8"),
        (3, "tensor_parallel_size=3 does not divide .*, which has 4 query heads; give 1, 2 or 4"),
        (0, "tensor_parallel_size is 0; it must be a whole number, between 1"),
    ],
)
def test_what_is_refused(number: int, message: str):
    with pytest.raises(UserError, match=message):
        LLM(str(tiny.checkpoint("llama3")), tensor_parallel_size=number)
