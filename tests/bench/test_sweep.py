"""The benchmark command on a tiny model."""

import functools
import json
import math
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import pytest

from emsjax import build_drafter
from emsjax.bench import contenders, peers, prompt_cache, run, sweep
from emsjax.bench.__main__ import main
from emsjax.bench.contenders import Contender
from emsjax.bench.decoding import Decoding
from emsjax.bench.limits import Limits
from emsjax.bench.prompts import GivenPrompts, MadeUpPrompts, read_datasets, take_evenly
from emsjax.engine.ladder import CAPACITY_MULTIPLE
from emsjax.errors import UserError
from emsjax.loading.load import load_model
from emsjax.shapes import round_up
from tests.bench.fake_vllm import VERSION, fake_python
from tests.engine.setup import EOS, expected
from tests.tiny import VOCAB_SIZE, checkpoint

FIELDS = {
    "method",
    "drafter",
    "batch_size",
    "dataset",
    "tokens_per_second",
    "tokens_per_step",
    "speedup",
    "input_padding",
    "cache_padding",
    "peak_memory_bytes",
    "device",
    "versions",
}


@pytest.fixture(scope="module")
def shared():
    """The benchmark's functions that load or compile, each remembering its results for the module.

    Loading and compiling are most of the time of these tests, and no run changes the results.
    """
    started = {}

    def start(spec, target, size, max_model_len, room=0):
        lengths = max_model_len, max_model_len + room
        capacities = tuple(round_up(length, CAPACITY_MULTIPLE) for length in lengths)
        key = id(target), spec, size, capacities
        if key not in started:
            contender = contenders.start(spec, target, size, max_model_len, room)
            started[key] = target, contender  # The target is kept, so that its id stays its own.
        return started[key][1]

    return SimpleNamespace(start=start, real_target=functools.cache(run.real_target))


@pytest.fixture(autouse=True)
def _quick(shared, monkeypatch):
    """Loads and compiles once; leaves out measuring the limits, which `test_records` tests."""
    monkeypatch.setattr(sweep, "start", shared.start)
    monkeypatch.setattr(run, "real_target", shared.real_target)
    monkeypatch.setattr(sweep, "measure_limits", lambda *_: Limits(1e12, 1e15))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("bench") / "some.jsonl"
    lines = [
        {"prompt_token_ids": [3 + n, 7, 8, 9] * (2 + n), "category": "ab"[n % 2]} for n in range(8)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def bench(directory, *arguments):
    return main([*map(str, arguments), "--output", str(directory)])


def results(directory):
    return json.loads((directory / "results.json").read_text())


@pytest.mark.slow
def test_one_run_of_everything(prompts, tmp_path):
    directory = checkpoint("llama-tied")
    status = bench(
        tmp_path,
        *("--model", directory, "--input", prompts, "--repeats", "2"),
        *("--methods", "none,vanilla,ems", "--batch-sizes", "3", "--drafters", "prompt-lookup"),
        *("--prompts", "2", "--max-tokens", "16", "--compare", "transformers"),
    )
    assert status == 0
    records = results(tmp_path)
    assert len(records) == 2 * 4
    weights = (directory / "model.safetensors").stat().st_size
    spec = load_model(str(directory)).model.cache_spec(3, 256)
    cache = math.prod(spec.shape) * spec.dtype.itemsize
    assert {record["dataset"] for record in records} == {"a", "b"}
    for record in records:
        assert record.keys() >= FIELDS
        assert record["error"] is None
        assert record["tokens_per_second"] > 0
        # All contenders write the same texts.
        assert (record["prompts"], record["prompts_differing"]) == (3, 0)
        if record["method"] != "transformers":
            padded = record["input_padding"] > 0, record["cache_padding"] > 0
            assert padded == ((True, True) if record["method"] == "vanilla" else (False, False))
            assert record["parts"].keys() == {"draft", "plan", "target", "verify"}
            assert record["attention"] == "cpu"
            assert 0 < record["limit_share"] < 1
            assert record["peak_memory_bytes"] > weights + cache
            assert record["other_cpus"] >= 0
            if record["method"] == "none":
                assert record["unused_rows"] >= 0.25  # A step has four rows for three slots.
    assert len({(record["dataset"], record["tokens"]) for record in records}) == 2
    text = (tmp_path / "results.md").read_text()
    assert "| vanilla, prompt-lookup " in text
    assert "paper: ems" in text
    names = {file.name for file in tmp_path.glob("*.png")}
    assert {"speedup-a.png", "tokens-per-step-b.png", "time-a.png"} <= names


def test_another_batch_size_is_added_to_existing_results(prompts, tmp_path, capsys):
    options = [*("--model", checkpoint("llama-tied"), "--input", prompts, "--datasets", "a")]
    options += ["--methods", "none", "--prompts", "1", "--max-tokens", "4", "--repeats", "1"]
    assert bench(tmp_path, *options, "--batch-sizes", "1", "--no-parts") == 0
    assert bench(tmp_path, *options, "--batch-sizes", "2", "--no-parts") == 2
    for _ in range(2):  # The second run replaces the first.
        assert bench(tmp_path, *options, "--batch-sizes", "2", "--no-parts", "--append") == 0
    assert [record["batch_size"] for record in results(tmp_path)] == [1, 2]
    options[-3] = "5"
    assert bench(tmp_path, *options, "--batch-sizes", "2", "--no-parts", "--append") == 2
    assert "differ in texts" in capsys.readouterr().err


def test_contenders_take_turns_and_each_repetition_starts_with_another(
    prompts, tmp_path, monkeypatch
):
    order, real = [], Contender.decode

    def decode(self, cache, jobs, *rest):
        order.append((self.spec.method, jobs[0].max_tokens))
        return real(self, cache, jobs, *rest)

    monkeypatch.setattr(Contender, "decode", decode)
    status = bench(
        tmp_path,
        *("--model", checkpoint("llama-tied"), "--input", prompts, "--datasets", "a"),
        *("--methods", "vanilla,ems-fixed", "--batch-sizes", "2", "--prompts", "2"),
        *("--max-tokens", "17", "--repeats", "3", "--no-parts"),
    )
    assert status == 0
    one, two, three = "none", "vanilla", "ems-fixed"
    turns = [one, two, three, two, three, one, three, one, two]
    assert [method for method, tokens in order if tokens == 17] == turns
    assert [method for method, tokens in order if tokens < 17] == turns[:3], "the warm-up"


def test_turns_within_texts_change_no_text(prompts, tmp_path, monkeypatch):
    turns, real = [], Decoding.advance

    def advance(self, *steps):
        if steps:  # Without steps it is a warm-up or prefill.
            turns.append((self, self.written, *steps))
        real(self, *steps)

    monkeypatch.setattr(Decoding, "advance", advance)
    options = ["--model", checkpoint("llama-tied"), "--input", prompts, "--datasets", "a"]
    options += ["--methods", "none,vanilla,ems-fixed", "--batch-sizes", "2", "--prompts", "2"]
    options += ["--max-tokens", "25", "--repeats", "1", "--no-parts", "--compare", "transformers"]
    assert bench(tmp_path / "turns", *options, "--steps-per-turn", "3") == 0
    assert len({id(decoding) for decoding, *_ in turns}) == 3
    assert {steps for *_, steps in turns} == {3}
    amounts = [written for _, written, _ in turns]
    assert amounts == sorted(amounts), "the next turn is that of the fewest tokens"
    assert all(decoding.ended for decoding, *_ in turns)
    assert bench(tmp_path / "whole", *options) == 0
    same = ("method", "tokens", "tokens_per_step", "prompts_differing", "input_padding")
    pairs = zip(results(tmp_path / "turns"), results(tmp_path / "whole"), strict=True)
    for apart, whole in pairs:
        assert [apart[name] for name in same] == [whole[name] for name in same]
        assert apart["prompts_differing"] == 0
        assert apart["decode_tokens_per_second"] > 0


def test_no_text_grows_beyond_the_models_positions(tmp_path):
    """The cache has whole blocks, and so more places than the model has positions."""
    config = json.loads((checkpoint("llama-tied") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 40}))
    options = ["--config", tmp_path / "config.json", "--random-weights", "--repeats", "1"]
    options += ["--simulate-acceptance", "0.5", "--methods", "none", "--batch-sizes", "2"]
    options += ["--prompts", "2", "--no-parts", "--max-tokens", "64"]
    assert bench(tmp_path / "a", *options, "--prompt-tokens", "30") == 0
    assert [record["tokens"] for record in results(tmp_path / "a")] == [20]
    assert bench(tmp_path / "b", *options, "--prompt-tokens", "40") == 2


def test_figures_do_not_depend_on_timing_the_parts(prompts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "time_parts", out_of_memory)
    status = bench(
        tmp_path,
        *("--model", checkpoint("llama-tied"), "--input", prompts, "--datasets", "a"),
        *("--methods", "none", "--batch-sizes", "2", "--prompts", "2", "--max-tokens", "4"),
        *("--repeats", "1", "--trace", tmp_path / "new" / "traces"),
    )
    assert status == 0
    (record,) = results(tmp_path)
    assert (record["error"], record["parts"], record["unused_rows"]) == (None, None, None)
    assert "none none: no details: out of memory" in capsys.readouterr().err
    assert list((tmp_path / "new" / "traces" / "none-none-2").rglob("*.trace.json.gz"))


@pytest.mark.slow
def test_a_recording_can_be_simulated(prompts, tmp_path):
    directory, file = checkpoint("llama-tied"), tmp_path / "new" / "acceptance.jsonl"
    common = ["--batch-sizes", "2", "--prompts", "2", "--max-tokens", "40"]
    model = ["--model", directory, "--input", prompts, "--datasets", "a", "--ignore-eos"]
    assert bench(tmp_path, *model, *common, "--methods", "none,ems", "--record", file) == 0
    shape = ["--config", directory / "config.json", "--random-weights", "--repeats", "1"]
    shape += ["--methods", "ems-fixed", "--simulate-acceptance", file, "--no-parts"]
    assert bench(tmp_path / "simulated", *shape, *common, "--prompt-tokens", "9") == 0
    (_, record) = results(tmp_path / "simulated")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 2
    assert sum(record["accepted_by_position"]) > 0


def test_room_for_holes_counts_only_for_methods_that_leave_holes(prompts, tmp_path, monkeypatch):
    load_drafter = Mock(wraps=build_drafter.load_drafter)
    monkeypatch.setattr(build_drafter, "load_drafter", load_drafter)
    options = ["--model", checkpoint("llama-tied"), "--input", prompts, "--datasets", "a"]
    options += ["--batch-sizes", "2", "--prompts", "2", "--max-tokens", "200", "--no-parts"]
    options += ["--drafters", "draft-model", "--draft-model", checkpoint("llama-tied")]
    options += ["--draft-quantize", "int8"]
    held = {}
    for methods in ("ems-fixed", "ems-fixed,vanilla"):
        assert bench(tmp_path / methods, *options, "--methods", methods, "--repeats", "1") == 0
        for record in results(tmp_path / methods):
            held.setdefault(record["method"], []).append(record["peak_memory_bytes"])
            assert record["draft_quantize"] == "int8"
    assert load_drafter.call_args.kwargs["quantize"] == "int8"
    spec = load_model(str(checkpoint("llama-tied"))).model.cache_spec(2, 256)
    block = math.prod(spec.shape) * spec.dtype.itemsize
    for method in ("none", "ems-fixed"):
        alone, with_vanilla = held[method]
        assert abs(alone - with_vanilla) < block / 2, "more token state, but no more cache"
    assert held["vanilla"][0] > held["ems-fixed"][1] + block


def out_of_memory(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")


def test_a_peer_that_does_not_fit_is_one_failed_cell(prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "load", out_of_memory)
    options = ["--model", checkpoint("llama-tied"), "--input", prompts, "--datasets", "a"]
    options += ["--methods", "none", "--batch-sizes", "1", "--prompts", "1", "--max-tokens", "4"]
    options += ["--compare", "transformers", "--repeats", "1", "--no-parts"]
    assert bench(tmp_path, *options) == 0
    found = {record["method"]: record["error"] for record in results(tmp_path)}
    assert found == {"none": None, "transformers": "out of memory"}


@pytest.fixture(scope="module")
def texts(prompts):
    """The greedy texts of `transformers` to the prompts, up to 6 tokens each."""
    lines = map(json.loads, prompts.read_text().splitlines())
    found = [tuple(line["prompt_token_ids"]) for line in lines]
    return {prompt: expected("llama-tied", prompt, 6, EOS) for prompt in found}


def test_whole_jobs_refill_the_slots_of_every_contender(prompts, texts, tmp_path, monkeypatch):
    served, real = [], Contender.serve

    def serve(self, jobs):
        served.append((self.spec.method, len(jobs), jobs[0].max_tokens))
        return real(self, jobs)

    monkeypatch.setattr(Contender, "serve", serve)
    status = bench(
        tmp_path / "out",
        *("--model", checkpoint("llama-tied"), "--input", prompts, "--datasets", "a"),
        *("--methods", "ems-fixed", "--drafters", "prompt-lookup", "--batch-sizes", "2"),
        *("--jobs", "2", "--max-tokens", "6", "--repeats", "2", "--compare", "transformers,vllm"),
        *("--vllm-python", fake_python(tmp_path / "vllm", texts)),
    )
    assert status == 0
    # Each repetition runs the job with one new token and with all, and starts with another one.
    turns = [("none", 4, 1), ("none", 4, 6), ("ems-fixed", 4, 1), ("ems-fixed", 4, 6)]
    assert [turn for turn in served if turn[1] == 4] == [*turns, *turns[2:], *turns[:2]]
    records = results(tmp_path / "out")
    assert [record["error"] for record in records] == [None] * 5
    assert {record["prompts"] for record in records} == {4}
    assert {record["tokens"] for record in records} == {sum(map(len, list(texts.values())[::2]))}
    assert {record["jobs"] for record in records} == {2}
    # What vLLM drafts is wrong here in every text.
    assert [record["prompts_differing"] for record in records] == [0, 0, 0, 0, 4]
    plain, ours, *others = records
    assert ours["tokens_per_step"] >= plain["tokens_per_step"] == 1
    assert (ours["input_padding"], ours["limit_share"], ours["parts"]) == (None, None, None)
    assert ours["over"].keys() == {"transformers", "vllm", "vllm, n-gram@3"}
    assert [record["over"] for record in others] == [{}] * 3
    assert ours["versions"]["vllm"] == VERSION
    text = (tmp_path / "out" / "results.md").read_text()
    assert "tokens/s of the whole job" in text
    assert "| times as fast as |" in text


def test_separate_caches_of_jobs_must_fit(prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_cache, "free_bytes", lambda: 1000)
    options = ["--model", checkpoint("llama-tied"), "--input", prompts, "--datasets", "a"]
    options += ["--methods", "none", "--batch-sizes", "1", "--max-tokens", "4", "--repeats", "1"]
    assert bench(tmp_path, *options, "--jobs", "2") == 0
    (record,) = results(tmp_path)
    assert "out of memory: --jobs needs a cache for each method" in record["error"]


def test_a_peer_that_crashes_is_one_failed_cell(prompts, tmp_path):
    options = ["--model", checkpoint("llama-tied"), "--input", prompts, "--datasets", "a"]
    options += ["--methods", "none", "--batch-sizes", "1", "--prompts", "1", "--max-tokens", "4"]
    options += ["--compare", "vllm", "--vllm-python", fake_python(tmp_path / "vllm", {})]
    assert bench(tmp_path / "out", *options, "--repeats", "1", "--no-parts") == 0
    plain, *others = results(tmp_path / "out")
    assert plain["error"] is None
    assert plain["over"] == {}
    assert all(other["error"].startswith("vLLM failed (KeyError: ") for other in others)


def test_separate_caches_must_fit(prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_cache, "free_bytes", lambda: 1000)
    options = ["--model", checkpoint("llama-tied"), "--input", prompts, "--datasets", "a"]
    options += ["--methods", "none", "--batch-sizes", "1", "--prompts", "1", "--max-tokens", "4"]
    assert bench(tmp_path, *options, "--repeats", "1", "--steps-per-turn", "2", "--no-parts") == 0
    (record,) = results(tmp_path)
    assert "out of memory: --steps-per-turn needs a cache for each method" in record["error"]


@pytest.mark.parametrize("when", ["compiling", "decoding", "in turns"])
def test_a_contender_that_does_not_fit_fails_alone(when, prompts, tmp_path, monkeypatch):
    real_start, real_decode = sweep.start, Contender.decode
    real_advance = Decoding.advance

    def start(spec, *rest):
        return out_of_memory() if spec.method == "vanilla" else real_start(spec, *rest)

    def decode(self, cache, *rest):
        if self.spec.method == "vanilla":
            cache.delete()  # As a donated buffer is.
            out_of_memory()
        return real_decode(self, cache, *rest)

    def advance(self, *steps):
        vanilla = self.state.holes is not None
        return out_of_memory() if vanilla and steps else real_advance(self, *steps)

    if when == "compiling":
        monkeypatch.setattr(sweep, "start", start)
    elif when == "in turns":
        monkeypatch.setattr(Decoding, "advance", advance)
    else:
        monkeypatch.setattr(Contender, "decode", decode)
    status = bench(
        tmp_path,
        *("--model", checkpoint("llama-tied"), "--input", prompts, "--datasets", "a"),
        *("--methods", "none,vanilla,ems-fixed", "--batch-sizes", "2", "--prompts", "2"),
        *("--max-tokens", "8", "--repeats", "1", "--no-parts"),
        *("--steps-per-turn", str(2 * (when == "in turns"))),
    )
    assert status == 0
    found = {record["method"]: record for record in results(tmp_path)}
    assert found["vanilla"]["error"] == "out of memory"
    assert found["vanilla"]["tokens_per_second"] is None
    assert found["ems-fixed"]["error"] is None
    assert found["ems-fixed"]["prompts_differing"] == 0
    assert "batch 2, vanilla, prompt-lookup: out of memory" in (tmp_path / "results.md").read_text()


@pytest.mark.slow
def test_a_shape_with_random_weights(tmp_path):
    config = checkpoint("llama-tied") / "config.json"
    status = bench(
        tmp_path,
        *("--config", config, "--random-weights", "--simulate-acceptance", "0.8"),
        *("--methods", "ems", "--batch-sizes", "2", "--prompts", "2", "--prompt-tokens", "20"),
        *("--max-tokens", "16", "--repeats", "1", "--no-parts", "--compare", "transformers"),
    )
    assert status == 0
    plain, ems, peer = results(tmp_path)
    assert (peer["error"], peer["tokens"], peer["prompts_differing"]) == (None, 32, None)
    assert peer["decode_speedup"] > 0
    assert "acceptance forced: 0.8" in ems["simulated"]
    assert "**Simulated**" in (tmp_path / "results.md").read_text()
    assert plain["tokens_per_step"] == 1.0
    assert ems["prompts_differing"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there are no prompts"),
        (["--methods", "fast"], "method 'fast' is unknown"),
        (["--drafters", "crystal-ball"], "drafter 'crystal-ball' is unknown"),
        (["--drafters", "prompt-lookup@many"], "has no number of tokens after the @"),
        (["--batch-sizes", "1,x"], "'1,x' is not a comma-separated list of whole numbers"),
        (
            ["--drafters", "simulated@0", "--config", "opt-125m"],
            "has no number of tokens after the @",
        ),
        (["--drafters", "simulated@65", "--config", "opt-125m"], "draft length"),
        (["--drafters", "simulated"], "is for --simulate-acceptance"),
        (["--methods", ","], "nothing to measure"),
        (["--methods", "none", "--record", "x.jsonl"], "--record needs drafts to record"),
        (["--batch-sizes", "0"], "batch size"),
        (["--config", "opt-125m"], "needs --random-weights"),
        (
            ["--drafters", "prompt-lookup", "--draft-model", "x", "--input", "x"],
            "is for --drafters",
        ),
        (
            ["--drafters", "prompt-lookup", "--draft-quantize", "int8", "--input", "x"],
            "--draft-quantize is for --drafters",
        ),
        (["--draft-quantize", "int3", "--input", "x"], "quantize 'int3' is unknown"),
        (["--record", "x.jsonl", "--append"], "--append is for figures"),
        (
            ["--config", "opt-125m", "--random-weights", "--simulate-acceptance", "0.5", "--chat"],
            "--chat needs a real model",
        ),
        (["--random-weights"], "are for a --config"),
        (["--compare", "transformers,sglang"], "--compare 'sglang' is unknown"),
        (["--compare", "vllm"], "need each other; give both"),
        (["--vllm-python", "python"], "need each other; give both"),
        (["--jobs", "2", "--steps-per-turn", "8"], "--steps-per-turn is for batches"),
        (["--jobs", "2", "--trace", "x"], "--trace is for batches"),
        (["--tensor-parallel", "0", "--input", "x"], "--tensor-parallel is 0; it must be a whole"),
        (["--tensor-parallel", "auto", "--input", "x"], "Input should be a valid integer"),
        (
            ["--tensor-parallel", "2", "--compare", "transformers", "--input", "x"],
            "--compare is for a model on one device; leave it or --tensor-parallel out",
        ),
        (
            ["--tensor-parallel", "2", "--record", "x.jsonl"],
            "--record is for a model on one device",
        ),
        (["--tensor-parallel", "2", "--config", "opt-125m"], "--config is for a model on one"),
        (
            ["--compare", "vllm", "--vllm-python", "there/is/none", "--input", "x"],
            "--vllm-python 'there/is/none' cannot be run",
        ),
        (
            ["--config", "opt-6.7z", "--random-weights", "--simulate-acceptance", "0.5"],
            "opt-6.7b",
        ),
        (
            ["--config", "opt-125m", "--random-weights", "--simulate-acceptance", "2"],
            "acceptance 2 is out of range",
        ),
        (
            [
                *("--config", "opt-125m", "--random-weights", "--simulate-acceptance", "0.5"),
                *("--drafters", "prompt-lookup@3"),
            ],
            "--drafters prompt-lookup cannot draft for random weights",
        ),
    ],
)
def test_mistakes_are_reported_in_a_sentence(arguments, message, tmp_path, capsys):
    assert bench(tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err


def test_an_input_that_cannot_be_read_is_named(tmp_path, capsys):
    model = ["--model", checkpoint("llama-tied")]
    assert bench(tmp_path / "out", *model, "--input", "there/is/none") == 2
    assert "input 'there/is/none' cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--drafters", "draft-model"], "needs a draft model"), (["--draft-model", "none"], "'none'")],
)
def test_drafters_that_cannot_be_built_are_reported_before_measuring(
    options, message, prompts, tmp_path, capsys
):
    asked = ["--model", checkpoint("llama-tied"), "--input", prompts, "--methods", "ems", *options]
    assert bench(tmp_path / "out", *asked) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.json").exists()


def test_datasets_are_categories(tmp_path):
    file = tmp_path / "file.jsonl"
    lines = [
        {"question_id": 1, "category": "qa", "turns": ["first", "second"]},
        {"question_id": 2, "category": "writing", "turns": ["first"]},
        {"prompt": "text"},
        {"messages": [{"role": "user", "content": "hi"}], "category": "own"},
        {"turns": ["first"]},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    found = read_datasets([file], [])
    assert found == {
        "qa": [[{"role": "user", "content": "first"}]],
        "mt_bench": [[{"role": "user", "content": "first"}]],
        "file": ["text", [{"role": "user", "content": "first"}]],
        "own": [[{"role": "user", "content": "hi"}]],
    }
    assert list(read_datasets([file], ["own"])) == ["own"]
    with pytest.raises(UserError, match="no prompts of 'rag'"):
        read_datasets([file], ["rag"])


@pytest.mark.parametrize("line", ['{"prompt": "a", "messages": []}', "{}", "nonsense", "[1]"])
def test_a_bad_line_is_named(line, tmp_path):
    file = tmp_path / "file.jsonl"
    file.write_text('{"prompt": "a"}\n' + line)
    with pytest.raises(UserError, match="line 2"):
        read_datasets([file], [])


def test_prompts_come_evenly_in_full_batches():
    assert take_evenly(range(100), 3, 4) == [0, 25, 50, 75]
    assert take_evenly(range(6), 10, 4) == [0, 1, 3, 4], "no batch that is not full"
    assert take_evenly(range(3), 10, 4) == [0, 0, 1, 2]
    assert take_evenly(range(10), 6, 3) == [0, 1, 3, 5, 6, 8]
    assert len(take_evenly(range(100), 24, 16)) == 32


def test_only_taken_prompts_are_tokenised_each_once():
    read = []

    def reader(prompt):
        read.append(prompt)
        return [3]

    prompts = GivenPrompts([f"prompt {n}" for n in range(100)], reader, chat=True)
    assert prompts.take(3, 4) == prompts.take(4, 1) == [(3,)] * 4
    assert [message["content"] for (message,) in read] == [f"prompt {n}" for n in (0, 25, 50, 75)]


@pytest.mark.parametrize(("least", "size", "count"), [(5, 1, 5), (24, 16, 32)])
def test_made_up_prompts_are_numbered_from_zero(least, size, count):
    prompts = MadeUpPrompts(7, VOCAB_SIZE).take(least, size)
    assert [prompt[0] for prompt in prompts] == list(range(count))
    assert {len(prompt) for prompt in prompts} == {7}
