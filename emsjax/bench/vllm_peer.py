"""vLLM on the same prompts, in an environment of its own."""

import json
import math
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import jax

from emsjax.bench.contenders import Spec
from emsjax.bench.whole_job import Served
from emsjax.engine.job import Job
from emsjax.engine.model import Model
from emsjax.errors import UserError

WORKER = Path(__file__).with_name("vllm_worker.py")
# Seconds that vLLM gets to end its own processes and to remove its shared memory.
PATIENCE = 30
# vLLM reserves its cache in blocks of this many tokens on a CPU.
BLOCK = 128


def vllm_version(python: Path) -> str:
    """Returns the version of vLLM in another environment, without importing vLLM.

    Raises:
      UserError: there is no such Python, its environment has no vLLM, or this device is no CPU.
    """
    if (device := jax.default_backend()) != "cpu":
        raise UserError(f"--compare vllm is for a CPU, and this device is a {device}; leave it out")
    try:
        asked = subprocess.run(
            _command(python, "--version"), capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise UserError(
            f"--vllm-python {str(python)!r} cannot be run ({error.strerror}); name the Python of "
            "an environment that has vLLM"
        ) from error
    if asked.returncode or not asked.stdout.strip():
        raise UserError(
            f"--vllm-python {str(python)!r} does not work ({_last_line(asked.stderr)}); "
            "install vLLM in its environment, or name another one"
        )
    return asked.stdout.strip()


class Vllm:
    """A process that serves jobs with vLLM, stopped while others are measured.

    Between jobs a worker of vLLM keeps a core busy for a second, which would slow the next
    contender down.
    """

    def __init__(
        self,
        python: Path,
        exported: Path | None,
        spec: Spec,
        model: Model,
        size: int,
        max_model_len: int,
    ):
        """Starts the process, and waits until the model is compiled.

        Args:
          python: of vLLM's environment.
          exported: a directory with the weights.
          spec: vLLM's plain decoding, or "n-gram@K".
          model: the target, for its dtype and the size of its cache.
          size: B.
          max_model_len: the most tokens of a sample.

        Raises:
          UserError: vLLM cannot start.
        """
        self._log = TemporaryFile()  # noqa: SIM115 - until `close`
        self._process = subprocess.Popen(
            _command(python),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # A group of its own, because vLLM starts more processes and all of them are stopped. In
            # the same session, so that the system ends stopped ones if this process is killed.
            process_group=0,
        )
        try:
            self._ask(_settings(exported, spec, model, size, max_model_len))
        except BaseException:
            self.close()
            raise

    def serve(self, jobs: Sequence[Job]) -> Served:
        """See `Peer`."""
        answer = self._ask(
            {
                "prompts": [list(job.prompt) for job in jobs],
                "max_tokens": [job.max_tokens for job in jobs],
                "stop_ids": list(jobs[0].stop_ids),
            }
        )
        return Served(answer["seconds"], [tuple(text) for text in answer["texts"]], {})

    def close(self) -> None:
        """Ends all processes of vLLM."""
        self._signal(signal.SIGCONT)
        with suppress(OSError, subprocess.TimeoutExpired):
            self._process.communicate(timeout=PATIENCE)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._signal(signal.SIGCONT)
        line = ""
        with suppress(BrokenPipeError):
            print(json.dumps(question, allow_nan=False), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            log = self._log.read().decode(errors="replace")
            raise UserError(f"vLLM ended early ({_last_line(log)}); leave out --compare vllm")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UserError(f"vLLM failed ({answer['error']}); leave out --compare vllm")
        self._signal(signal.SIGSTOP)
        return answer

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _command(python: Path, *arguments: str) -> list[str]:
    # Isolated, so that neither the worker's directory nor PYTHONPATH hides modules of vLLM.
    return [str(python), "-I", str(WORKER), *arguments]


def _settings(
    exported: Path | None, spec: Spec, model: Model, size: int, max_model_len: int
) -> dict[str, Any]:
    """The arguments of `vllm.LLM`."""
    # Room for all slots and the block that vLLM keeps empty, in the model's dtype even if our own
    # cache is int8.
    cache = model.cache_spec(size + 1, -(-max_model_len // BLOCK) * BLOCK + BLOCK)
    settings: dict[str, Any] = {
        "model": str(exported),
        "dtype": str(model.dtype),
        "max_num_seqs": size,
        "max_model_len": max_model_len,
        "kv_cache_memory_bytes": math.prod(cache.shape) * model.dtype.itemsize,
    }
    if spec.draft_length is not None:
        settings["speculative_config"] = {
            "method": "ngram",
            "num_speculative_tokens": spec.draft_length,
            # As for prompt lookup here.
            "prompt_lookup_min": 1,
            "prompt_lookup_max": 3,
        }
    return settings


def _last_line(log: str) -> str:
    lines = log.strip().splitlines()
    return lines[-1] if lines else "it wrote no message"
