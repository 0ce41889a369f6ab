"""The stage for Ray Data, without Ray: columns in, columns out, the texts of `generate`."""

import asyncio
import json
import sys
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from emsjax.errors import UserError
from emsjax.generate.__main__ import main
from emsjax.ray import Generate, generate
from emsjax.ray.dataset import map_options
from emsjax.ray.rows import ERROR, read_row, rows_of, with_results
from emsjax.requests.service import Service

ENGINE = {"max_batch_size": 2, "max_model_len": 64, "planner": False}
DEFAULTS = {"max_tokens": 9, "temperature": 1.0}


def column(values: list[Any]) -> np.ndarray:
    """Returns an array of objects, as Ray makes of columns of lists and mappings."""
    found = np.empty(len(values), object)
    found[:] = values
    return found


def batch() -> dict[str, Any]:
    """Returns rows of every kind, as a table has them: what a row lacks is null."""
    hello = {"role": "user", "content": "w7 w8", "name": None}
    return {
        "id": np.array([3, 4, 5, 6, 7, 8]),
        "prompt": column(["w7 w8", None, "w9", None, "w10 w11", "w12"]),
        "messages": column([None, np.array([hello]), None, None, None, None]),
        "sampling_params": column(
            [None, {"max_tokens": 5, "seed": None}, None, None, {"max_tokens": -1}, {"n": 2}]
        ),
        "weight": np.array([0.5, 1.5, 2.5, 3.5, 4.5, 5.5], np.float32),
    }


@pytest.fixture(scope="module")
def stage(model_dir: str) -> Any:
    run = Service._run

    def strict(service: Service) -> None:
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            run(service)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Service, "_run", strict)
        made = Generate(DEFAULTS, model=model_dir, **ENGINE)
        yield made
        made._service.close()


async def together(stage: Generate, *batches: dict[str, Any]) -> list[dict[str, Any]]:
    async def one(given: dict[str, Any]) -> dict[str, Any]:
        (made,) = [each async for each in stage(given)]
        return made

    return await asyncio.gather(*map(one, batches))


def test_the_texts_are_those_of_the_command(stage, model_dir, tmp_path):
    rows = [{"id": n, "prompt": f"w{7 + n} w8", "max_tokens": 3 + n % 7} for n in range(12)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    given = ["--input", tmp_path / "in.jsonl", "--output", out, "--model", model_dir]
    options = ["--batch-size=2", "--max-model-len=64", "--no-planner", "--temperature=1"]
    assert main([*map(str, given), *options]) == 0
    records = {line["id"]: line for line in map(json.loads, out.read_text().splitlines())}
    # Three batches at once, in another order than the lines.
    batches = [
        {
            "id": np.array([row["id"] for row in rows[start::3]]),
            "prompt": column([row["prompt"] for row in rows[start::3]]),
            "sampling_params": column(
                [{"max_tokens": row["max_tokens"]} for row in rows[start::3]]
            ),
        }
        for start in (2, 0, 1)
    ]
    for made in asyncio.run(together(stage, *batches)):
        assert list(made[ERROR]) == [""] * 4
        for place, name in enumerate(made["id"]):
            record = records[name]
            assert made["generated_tokens"][place] == record["token_ids"]
            assert made["generated_text"][place] == record["text"]
            assert made["num_generated_tokens"][place] == len(record["token_ids"])


def test_a_bad_row_has_an_error_and_all_columns_stay(stage):
    given = batch()
    (made,) = asyncio.run(together(stage, given))
    assert all(made[name] is given[name] for name in given)
    errors = list(made[ERROR])
    assert errors[:3] == ["", "", ""]
    assert errors[3].startswith("the object has no prompt")
    assert "max_tokens" in errors[4]
    assert errors[5].startswith("n=2 does not fit in a row")
    assert list(made["num_generated_tokens"][3:]) == [0, 0, 0]
    assert list(made["num_input_tokens"]) == [2, 4, 1, 0, 0, 0]
    assert 0 < made["num_generated_tokens"][1] <= 5
    assert isinstance(made["generated_tokens"][0], list)


def test_a_row_without_an_id_has_the_seed_of_its_prompt(stage):
    alone, others = (
        {"prompt": column(prompts)} for prompts in (["w7 w8"], ["w9", "w7 w8", "w7 w8"])
    )
    first, second = asyncio.run(together(stage, alone, others))
    texts = second["generated_text"]
    assert first["generated_text"][0] == texts[1] == texts[2]


def test_a_failing_service_fails_the_batch(stage, monkeypatch):
    def submit(_requests, listen):
        listen(RuntimeError("the device is gone"))

    monkeypatch.setattr(stage._service, "submit", submit)
    with pytest.raises(RuntimeError, match="the device is gone"):
        asyncio.run(together(stage, {"prompt": column(["w7"])}))


def test_wrong_parameters_end_the_job_before_a_model_is_loaded():
    with pytest.raises(UserError, match="max_tokens"):
        Generate({"max_tokens": -1}, model="missing")


def test_rows_become_values_of_python():
    rows = rows_of({"a": np.array([1, 2]), "b": column([np.array([{"c": np.int64(3)}]), None])})
    assert rows == [{"a": 1, "b": [{"c": 3}]}, {"a": 2, "b": None}]
    assert type(rows[0]["a"]) is int
    assert rows_of({}) == rows_of({"a": np.array([])}) == []
    assert with_results({}, [])["generated_text"].shape == (0,)


def test_fields_that_only_other_messages_have_are_dropped():
    messages = [
        {"role": "user", "content": "a", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]},
    ]
    prompt, _, name = read_row({"messages": messages, "key": "x"}, {}, "key")
    assert prompt == [{"role": "user", "content": "a"}, {**messages[1], "content": ""}]
    assert name == '"x"'


def test_resources_and_sizes():
    assert map_options("tpu", 4, None, 32) == {
        "batch_size": 64,
        "max_concurrency": 4,
        "resources": {"TPU": 4},
    }
    assert map_options("gpu", 1, 10, 8)["num_gpus"] == 1
    assert map_options("cpu", 2, 10, 8) == {"batch_size": 10, "max_concurrency": 4, "num_cpus": 2}
    for wrong in (("npu", 1, None, 8), ("cpu", 0, None, 8), ("cpu", 1, 0, 8)):
        with pytest.raises(UserError):
            map_options(*wrong)


def test_the_call_of_map_batches(monkeypatch):
    ray = SimpleNamespace(ActorPoolStrategy=lambda **options: options)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(data=ray))
    monkeypatch.setitem(sys.modules, "ray.data", ray)
    dataset = SimpleNamespace(map_batches=lambda *given, **options: (given, options))
    options = {"platform": "gpu", "actors": 3, "model": "m", "max_batch_size": 16}
    given, found = generate(dataset, **options, ray_options={"accelerator_type": "H100"})
    assert given == (Generate,)
    assert found == {
        "fn_constructor_kwargs": {
            "sampling_params": {},
            "id_column": "id",
            "model": "m",
            "max_batch_size": 16,
        },
        "compute": {"size": 3, "max_tasks_in_flight_per_actor": 4},
        "batch_size": 32,
        "max_concurrency": 4,
        "num_gpus": 1,
        "accelerator_type": "H100",
    }


def test_wrong_parameters_end_the_call(monkeypatch):
    ray = SimpleNamespace(ActorPoolStrategy=None)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(data=ray))
    monkeypatch.setitem(sys.modules, "ray.data", ray)
    for wrong in ({"sampling_params": {"max_tokens": -1}}, {"actors": 0}, {"platform": "npu"}):
        with pytest.raises(UserError):
            generate(SimpleNamespace(), **{"platform": "cpu", **wrong})


def test_without_ray_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(UserError, match=r"install emsjax with the extra \[ray\]"):
        generate(SimpleNamespace(), platform="cpu")


@pytest.mark.parametrize("option", ["logprobs", "prompt_logprobs"])
def test_what_has_no_column_is_refused(option: str):
    with pytest.raises(UserError, match=f"^{option} has no column in a row; leave it out"):
        read_row({"prompt": "w7", "sampling_params": {option: 1}}, {}, "id")
