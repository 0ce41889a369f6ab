"""Records, tables and shares of the hardware's limit, from made-up runs."""

from collections import namedtuple
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emsjax.bench import limits, other_work
from emsjax.bench.cells import Cell, catching_failures
from emsjax.bench.contenders import Spec
from emsjax.bench.decoding import Run
from emsjax.bench.limits import Limits, measure_limits, share_of_limit
from emsjax.bench.other_work import OtherWork
from emsjax.bench.parts import StepParts
from emsjax.bench.records import check_alike, merge, records_of
from emsjax.bench.tables import report
from emsjax.errors import UserError
from tests.engine.setup import tiny_model

COUNTS = {
    name: np.asarray(value)
    for name, value in {
        "target_steps": 4,
        "rows": 20,
        "padded": 5,
        "cached": 100,
        "empty": 10,
        "drafted": [3, 2],
        "accepted": [2, 1],
    }.items()
}
FACTS = {"model": "m", "dtype": "float32", "simulated": None, "device": "cpu", "texts": {}}
FACTS |= {"draft_model": None, "jobs": None, "quantize": None, "kv_dtype": None}
FACTS |= {"draft_quantize": None}
FACTS |= {"versions": {"jax": "1"}, "other_cpus": 0.01, "command": "the command"}
FOUR, FIVE = (1, 2, 3, 4), (1, 2, 3, 4, 5)


def cell(method: str, seconds: list[float], text=FOUR, size: int = 1, **facts) -> Cell:
    """A cell with one repetition for each of `seconds`, after a second of prefill each."""
    runs = [[Run(each, [text], 4, COUNTS, 1.0)] for each in seconds]
    drafter = "none" if method == "none" else "prompt-lookup"
    return Cell(Spec(method, drafter), "data", size, {"attention": "tpu"} | facts, runs)


def table_cells(markdown: str) -> set[str]:
    """The text of all table cells in a report."""
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    return {text.strip() for row in rows for text in row.split("|")}


def test_speedup_is_the_ratio_of_rates_in_each_repetition():
    """The texts differ in length, so a ratio of seconds would be another one."""
    plain, ours = cell("none", [8.0, 10.0, 4.0]), cell("ems", [4.0, 2.5, 4.0], text=FIVE)
    _, record = records_of([plain, ours], FACTS)
    assert record["decode_tokens_per_second"] == 1.25
    assert record["decode_speedup"] == 2.5  # The median of 2.5, 5 and 1.25.
    assert record["decode_speedup_spread"] == [1.25, 5.0]
    assert record["speedup"] == pytest.approx(9 / 5 * 5 / 4)  # With a second of prefill.
    assert record["prompts_differing"] == 1
    assert record["tokens_per_step"] == 1.25
    assert (record["input_padding"], record["cache_padding"]) == (0.25, 0.1)
    assert record["accepted_by_position"] == [2, 1]


def test_a_contender_is_compared_with_each_other_library():
    """In all, in reading the prompts and in the further tokens, repetition by repetition."""
    plain, theirs = cell("none", [3.0, 7.0, 3.0]), cell("vllm", [1.0, 1.0, 4.0], text=FIVE)
    theirs.spec = Spec("vllm")
    for runs in theirs.runs:
        runs[0] = runs[0]._replace(prefill=0.5)
    broken = cell("transformers", [1.0])
    broken.spec, broken.error = Spec("transformers"), "out of memory"
    records = records_of([plain, theirs, broken], FACTS)
    found = records[0]["over"]
    assert found.keys() == {"vllm"}
    # 4 tokens in 4, 8 and 4 seconds; theirs are 5 in 1.5, 1.5 and 4.5.
    assert found["vllm"]["whole"] == pytest.approx([0.3, 0.15, 0.9])
    assert found["vllm"]["reading"] == pytest.approx([0.5, 0.5, 0.5])
    assert found["vllm"]["further"] == pytest.approx([4 / 15, 4 / 35, 16 / 15])
    assert [record["over"] for record in records[1:]] == [{}, {}]
    assert {"vllm", "0.30 (0.15-0.90)"} <= table_cells(report(records))


def test_whole_jobs_have_a_table_of_their_own():
    records = records_of([cell("none", [3.0]), cell("ems", [1.0])], FACTS | {"jobs": 2})
    text = report(records)
    assert "speedup without prefill" not in text
    # Of `ems`: 4 tokens in 2 seconds, half of them for the first tokens.
    assert {"2.0 (2.0-2.0)", "2.00", "1.00", "0 of 1"} <= table_cells(text)


def test_if_plain_decoding_failed_there_are_rates_but_no_speedups():
    plain = cell("none", [1.0])
    plain.error = "out of memory"
    found = records_of([plain, cell("ems", [4.0])], FACTS)
    assert found[0]["tokens_per_second"] is None
    assert found[1]["decode_tokens_per_second"] == 1.0
    assert (found[1]["speedup"], found[1]["decode_speedup_spread"]) == (None, None)
    assert found[1]["prompts_differing"] is None, "there is nothing to compare with"
    assert {"-", "failed"} <= table_cells(report(found))


def test_newer_records_replace_those_of_the_same_batch_size():
    def found(size: int, seconds: float):
        return records_of([cell("none", [seconds], size=size)], FACTS)

    both = merge(merge([], found(2, 1.0)), found(1, 1.0))
    records = merge(both, found(1, 2.0))
    assert [(r["batch_size"], r["decode_tokens_per_second"]) for r in records] == [(1, 2), (2, 4)]


def test_a_speedup_is_removed_with_the_plain_decoding_it_was_computed_from():
    earlier = records_of([cell("none", [4.0]), cell("ems", [2.0])], FACTS)
    newer = records_of([cell("none", [1.0]), cell("vanilla", [2.0])], FACTS)
    assert [record["method"] for record in merge(earlier, newer)] == ["none", "vanilla"]


def test_a_failed_run_does_not_replace_earlier_figures():
    earlier = records_of([cell("none", [4.0]), cell("ems", [2.0])], FACTS)
    failed = cell("none", [1.0])
    failed.error = "out of memory"
    newer = records_of([failed, cell("ems", [1.0])], FACTS)
    assert merge(earlier, newer) == earlier
    assert merge([], newer) == newer
    assert merge(newer, newer) == newer


@pytest.mark.parametrize(
    "field",
    [
        *("model", "dtype", "quantize", "kv_dtype", "simulated", "device", "versions", "texts"),
        *("draft_model", "draft_quantize", "jobs"),
    ],
)
def test_records_that_differ_in_a_shared_fact_are_not_added(field: str):
    earlier = records_of([cell("none", [1.0])], FACTS | {field: "a"})
    check_alike(earlier, FACTS | {field: "a"})
    with pytest.raises(UserError, match=f"differ in {field}: there it is a, here b"):
        check_alike(earlier, FACTS | {field: "b"})


def test_the_report_names_what_makes_figures_incomparable():
    plain, ours = cell("none", [4.0]), cell("ems", [2.0], text=FIVE)
    ours.parts = StepParts({}, 0.125)
    quiet = report(records_of([plain, cell("ems", [2.0])], FACTS))
    assert "†" not in quiet
    assert "kernel" not in quiet
    ours.facts["attention"] = "reference"
    records = records_of([plain, ours], FACTS | {"other_cpus": 0.2, "commit": "abc"})
    records[1]["command"] = "another command"
    text = report(records)
    assert {"2.50 (2.08)†", "1 of 1", "12%"} <= table_cells(text)
    assert "tpu in none; reference in ems" in text
    assert "it kept 0.2 processors busy" in text
    assert "Commit: abc (batch 1)." in text
    assert "Other work" not in quiet
    assert "the command\nanother command\n" in text


class OutOfMemoryError(RuntimeError):
    """Named like PyTorch's error."""


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no"),
        OutOfMemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_does_not_end_the_sweep(error: Exception):
    said: list[str] = []
    with catching_failures(said.append):
        raise error
    assert said == ["out of memory"]


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("INTERNAL"), RuntimeError("bug")])
def test_other_errors_are_not_hidden(error: Exception):
    said: list[str] = []
    with pytest.raises(type(error)), catching_failures(said.append):
        raise error
    assert said == []


# Linux counts guest time in user time as well.
LINUX = "user nice system idle iowait irq softirq steal guest guest_nice"


@pytest.mark.parametrize(
    ("fields", "begin", "end", "busy"),
    [
        (LINUX, (5, 1, 2, 90, 3, 1, 1, 1, 4, 0), (9, 2, 4, 99, 5, 1, 1, 2, 7, 0), 4 + 1 + 2 + 1),
        ("user nice system idle", (5, 1, 2, 90), (10, 2, 4, 99), 5 + 1 + 2),
    ],
)
def test_other_work_is_counted_without_our_own(
    monkeypatch: pytest.MonkeyPatch, fields: str, begin: tuple, end: tuple, busy: float
):
    clock = iter([100.0, 104.0])
    own = namedtuple("Own", "user system children_user children_system")
    machine = namedtuple("Machine", fields)
    readings = {"machine": machine(*begin), "own": own(1, 1, 1, 1)}
    monkeypatch.setattr(other_work, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(other_work.psutil, "cpu_times", lambda: readings["machine"])
    process = SimpleNamespace(cpu_times=lambda: readings["own"])
    monkeypatch.setattr(other_work.psutil, "Process", lambda: process)
    work = OtherWork()
    readings |= {"machine": machine(*end), "own": own(2, 1, 1, 2)}
    assert work.since_last_call() == (busy - 2) / 4


def test_other_work_is_never_less_than_none(monkeypatch: pytest.MonkeyPatch):
    work = OtherWork()
    monkeypatch.setattr(other_work, "_others", lambda: 0.0)
    assert work.since_last_call() == 0


def test_the_share_of_the_limit_is_the_longer_of_reading_and_computing():
    model = tiny_model("llama3")
    counts = {"rows": np.asarray(30), "cached": np.asarray(70), "target_steps": np.asarray(10)}
    run = Run(2.0, [], 10, counts, 0.0)
    spec = model.cache_spec(1, 1)
    weights = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model)))
    if not model.config.tied:
        weights -= model.embedder.tokens.nbytes
    read = 10 * weights + 70 * int(np.prod(spec.shape)) * spec.dtype.itemsize
    assert share_of_limit(run, model, Limits(1e6, 1e18)) == pytest.approx(read / 1e6 / 2)
    # A multiplication and an addition for every weight and row.
    computed = 2 * 30 * weights / 4
    found = share_of_limit(run, model, Limits(1e18, 1e6))
    assert found == pytest.approx(computed / 1e6 / 2, rel=0.02)  # Norms are not products.


# Seconds of the tries of one measurement; the fastest is neither the first nor the last.
SLOW, FAST, PRODUCT = (
    [9.0, 6.0, 5.0, 4.0, 8.0],
    [3.0, 2.0, 0.5, 7.0, 2.0],
    [4.0, 0.25, 1.0, 2.0, 3.0],
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fastest_way", range(3))
def test_limits_are_bytes_and_operations_over_the_fastest_try(
    monkeypatch: pytest.MonkeyPatch, dtype: str, fastest_way: int
):
    """Small arrays and a clock that the test sets give the exact rates."""
    rows, columns, size = 64, 256, 32
    reading = [FAST if way == fastest_way else SLOW for way in range(3)]
    # The clock is read before and after each try.
    steps = [step for tries in (*reading, PRODUCT) for seconds in tries for step in (0.0, seconds)]
    clock = iter(np.cumsum(steps).tolist())
    monkeypatch.setattr(limits, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(limits, "COLUMNS", columns)
    monkeypatch.setattr(limits, "READ_ROWS", {"cpu": rows})
    monkeypatch.setattr(limits, "MATRIX", {"cpu": size})
    found = measure_limits(jnp.dtype(dtype), None)
    itemsize = jnp.dtype(dtype).itemsize
    assert found == Limits(rows * columns * itemsize / min(FAST), 2 * size**3 / min(PRODUCT))
    assert next(clock, None) is None, "every try was timed"
