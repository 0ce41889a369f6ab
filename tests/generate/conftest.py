"""The command line on a fake engine, in this process."""

import io
import json
import logging
import os
import signal
import sys
from dataclasses import dataclass

import fake_llm
import pytest
from hypothesis import HealthCheck, settings

from emsjax.generate.__main__ import main

# A shared machine is slow now and then; that is no finding.
settings.register_profile("emsjax", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("emsjax")


@pytest.fixture(autouse=True)
def interruptible():
    """As at a terminal: what a shell starts in the background ignores interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class Called:
    """What a call of the command line left."""

    status: int
    out: str
    err: str

    @property
    def records(self):
        """The JSON lines on standard output."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def llm(monkeypatch):
    """The fake engine's class, in place of the real one."""
    monkeypatch.setitem(sys.modules, "emsjax.llm", None)
    fake_llm.install()
    monkeypatch.setattr(fake_llm.LLM, "loads", [])
    monkeypatch.setattr(fake_llm.LLM, "pulled", 0)
    monkeypatch.setattr(fake_llm.LLM, "before_result", fake_llm.LLM.before_result)
    monkeypatch.setattr(fake_llm.LLM, "before_piece", fake_llm.LLM.before_piece)
    monkeypatch.setattr(fake_llm.LLM, "before_piece", fake_llm.LLM.before_piece)
    return fake_llm.LLM


@pytest.fixture
def call(llm, capfd, monkeypatch):
    """Call the command line; `stdin` is bytes for a pipe, None for a terminal."""
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    level = logging.getLogger("absl").level

    def call(*arguments, stdin=None):
        piped = io.TextIOWrapper(io.BytesIO(stdin or b""))
        piped.isatty = lambda: stdin is None
        monkeypatch.setattr(sys, "stdin", piped)
        status = main([str(argument) for argument in arguments])
        return Called(status, *capfd.readouterr())

    yield call
    logging.getLogger("absl").setLevel(level)
    signal.signal(signal.SIGTERM, handler)
    os.environ.clear()
    os.environ.update(environment)
