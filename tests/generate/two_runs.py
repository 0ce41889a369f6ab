"""Runs the command line on the fake `LLM` in every round, on one output for all processes."""

import io
import os
import random
import sys
import time
from contextlib import redirect_stderr

import fake_llm

from emsjax.generate.__main__ import main
from tests.together import take_turns


def run(turn: int) -> list:
    options = os.environ["OPTIONS"].split()
    chance = random.Random(f"{turn} {sys.argv[1]}")
    fake_llm.LLM.before_result = staticmethod(lambda _number: time.sleep(chance.random() / 2000))
    time.sleep(chance.choice((0, 0, chance.random() / 100)))
    said = io.StringIO()
    with redirect_stderr(said):
        status = main([*options, "--output", os.environ["FILE"].format(turn)])
    return [status, said.getvalue()]


if __name__ == "__main__":
    fake_llm.install()
    take_turns(run)
