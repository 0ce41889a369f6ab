"""Serves jobs with vLLM, in an environment of vLLM's own, so that it imports nothing of emsjax.

With `--version` it prints vLLM's version. Otherwise it reads lines of JSON from standard input and
answers each with one. The first line holds the settings of `start`, every other line a job, see
`serve`. If something fails, the answer is `{"error": ...}`, and the process ends.
"""

import importlib.metadata
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any


def start(settings: dict[str, Any]) -> Any:
    """Starts vLLM as fast as it gets on a CPU.

    Args:
      settings: the arguments of `vllm.LLM`.
    """
    # vLLM would keep a core for its scheduler, which has little to do for a few slots.
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # Version 0.32 cannot load what this keeps, and would compile the model anew at every start.
    os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")
    # Numba searches for n-grams on one thread. If it shares OpenMP with PyTorch, PyTorch computes
    # on one thread too, and prompts are read at half the speed.
    os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")
    # Its documentation asks for Intel's OpenMP, without which drafts are slow. The requirement
    # `intel-openmp` installs it, and the processes that compute load it.
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
    if openmp.is_file():
        os.environ.setdefault("LD_PRELOAD", str(openmp))
    from vllm import LLM

    return LLM(
        skip_tokenizer_init=True,
        # Otherwise a job whose prompts were read before would not read them again.
        enable_prefix_caching=False,
        # PyTorch compiles a model with a C++ compiler.
        enforce_eager=not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")),
        **settings,
    )


def serve(llm: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Returns the texts of a job's prompts, and the seconds that it took.

    Args:
      llm: the server.
      job: `prompts` (token ids), `max_tokens` (of each text) and `stop_ids`.
    """
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]
    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            stop_token_ids=job["stop_ids"],
            ignore_eos=True,  # the job's stop tokens are the only ones
            detokenize=False,
        )
        for max_tokens in job["max_tokens"]
    ]
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "texts": [list(out.outputs[0].token_ids) for out in outputs]}


def version() -> str:
    """Returns vLLM's version; its distribution has another name for each kind of device."""
    names = importlib.metadata.packages_distributions().get("vllm")
    if not names:
        sys.exit("its environment has no module vllm")
    return importlib.metadata.version(names[0])


def main() -> int:
    """Answers line after line until standard input ends, and returns the exit status."""
    if sys.argv[1:] == ["--version"]:
        print(version())
        return 0
    # vLLM writes its log to standard output, which belongs to the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(fields: dict[str, Any]) -> None:
        print(json.dumps(fields, allow_nan=False), file=answers, flush=True)

    try:
        llm = start(json.loads(sys.stdin.readline()))
        answer({})
        for line in sys.stdin:
            answer(serve(llm, json.loads(line)))
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":  # vLLM's own processes import this file
    sys.exit(main())
