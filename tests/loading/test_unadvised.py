"""Without PyTorch installed, no warning about PyTorch is printed."""

import os
import subprocess
import sys

import pytest

IMPORT = """
import importlib.util

find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
"""
QUIETLY = """
from emsjax.loading.hf.config import complete_config

complete_config({"model_type": "opt"}, ["opt"], "here")
"""


@pytest.mark.parametrize(("script", "warned"), [("import transformers", True), (QUIETLY, False)])
def test_missing_pytorch_is_not_mentioned(script, warned):
    # Other tests in this process may have set variables that silence transformers.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRANSFORMERS_")}
    check = "\nimport os\nassert 'TRANSFORMERS_NO_ADVISORY_WARNINGS' not in os.environ\n"
    done = subprocess.run(
        [sys.executable, "-c", IMPORT + script + check],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("PyTorch was not found" in done.stderr) == warned, done.stderr
