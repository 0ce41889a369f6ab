"""vLLM in another process. The worker is the real one, vLLM itself is `fake_vllm`."""

import os
import signal
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from flax import nnx

from emsjax.bench import vllm_peer
from emsjax.bench.contenders import Spec
from emsjax.bench.peer import PEERS, VLLM
from emsjax.bench.vllm_peer import Vllm, vllm_version
from emsjax.engine.job import Job
from emsjax.errors import UserError
from tests.bench.fake_vllm import VERSION, fake_python, started
from tests.engine.setup import tiny_model

PLAIN, DRAFTS = PEERS[VLLM]
TEXTS = {(3, 4): [5, 6, 7], (8,): [9, 10, 11]}
JOBS = [Job(0, (3, 4), 3, (7,)), Job(1, (8,), 2, (7,))]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama3")


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    return fake_python(tmp_path_factory.mktemp("vllm"), TEXTS)


def start(python: Path, model, spec: Spec = PLAIN, size: int = 2) -> Vllm:
    return Vllm(python, Path("weights"), spec, model, size, 300)


def test_jobs_are_served_and_the_processes_are_stopped_between_them(python, model, monkeypatch):
    sent, real = [], os.killpg

    def killpg(group: int, number: int) -> None:
        sent.append(number)
        real(group, number)

    monkeypatch.setattr(os, "killpg", killpg)
    vllm = start(python, model)
    number = vllm._process.pid
    try:
        for _ in range(2):
            assert sent[-2:] == [signal.SIGCONT, signal.SIGSTOP]
            # This waits until the system has stopped the process, and returns once for each stop.
            assert os.waitpid(number, os.WUNTRACED)[0] == number
            served = vllm.serve(JOBS)
            assert served.tokens == [(5, 6, 7), (9, 10)]
            assert served.seconds > 0
            assert served.counts == {}
    finally:
        vllm.close()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_vllm_gets_the_slots_and_reads_every_prompt_anew(python, model):
    start(python, model, DRAFTS).close()
    options = started(python)[-1]
    assert (options["model"], options["dtype"]) == ("weights", "float32")
    assert (options["max_num_seqs"], options["max_model_len"]) == (2, 300)
    assert options["enable_prefix_caching"] is False
    assert options["speculative_config"]["num_speculative_tokens"] == 3
    config, tokens = model.config, 3 * 384  # in blocks, for two slots and the empty block
    needed = tokens * 2 * config.num_layers * config.num_kv_heads * config.head_dim
    assert options["kv_cache_memory_bytes"] >= needed * jnp.dtype(model.dtype).itemsize


def test_an_int8_cache_is_ours_alone(python, model):
    asked = []
    for kv_dtype in (None, "int8"):
        graphdef, weights = nnx.split(model)
        ours = nnx.merge(graphdef, weights)
        ours.kv_dtype = kv_dtype
        start(python, ours).close()
        asked.append(started(python)[-1])
    assert asked[0] == asked[1]


def test_the_version_is_that_of_the_other_environment(python, monkeypatch):
    assert vllm_version(python) == VERSION
    monkeypatch.setattr(vllm_peer.jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match="is for a CPU, and this device is a gpu"):
        vllm_version(python)


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("there/is/none", r"'there/is/none' cannot be run \(No such file or directory\); name"),
        (sys.executable, r"does not work \(its environment has no module vllm\); install vLLM"),
    ],
)
def test_a_python_without_vllm_is_reported(python: str, message: str):
    with pytest.raises(UserError, match=message):
        vllm_version(Path(python))


def test_vllm_that_cannot_start_is_reported(python, model):
    with pytest.raises(UserError, match=r"failed \(RuntimeError: no such number of slots\); leave"):
        start(python, model, size=666)


def test_a_crash_is_reported_with_the_last_line_of_the_log(python, model):
    vllm = start(python, model)
    try:
        with pytest.raises(UserError, match=r"vLLM ended early \(out of luck\); leave out"):
            vllm.serve([Job(0, (1, 66), 3)])
        with pytest.raises(UserError, match="vLLM ended early"):
            vllm.serve(JOBS)
    finally:
        vllm.close()


def test_prompts_that_vllm_refuses_are_reported(python, model):
    vllm = start(python, model)
    try:
        with pytest.raises(UserError, match=r"vLLM failed \(KeyError: "):
            vllm.serve([Job(0, (1, 2), 3)])
    finally:
        vllm.close()
