"""Fixtures: the command line on a fake `LLM`, in this process."""

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

# A busy machine is slow at times, which does not mean that a test fails.
settings.register_profile("emsjax", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("emsjax")


@pytest.fixture(autouse=True)
def interruptible():
    """Handles SIGINT as at a terminal: background jobs of a shell ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class Called:
    """The exit status and output of a call of the command line."""

    status: int
    out: str
    err: str

    @property
    def records(self):
        """The JSON lines on standard output."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def llm(monkeypatch):
    """Installs the fake `LLM` class and returns it."""
    monkeypatch.setitem(sys.modules, "emsjax.llm", None)
    fake_llm.install()
    monkeypatch.setattr(fake_llm.LLM, "loads", [])
    monkeypatch.setattr(fake_llm.LLM, "pulled", 0)
    monkeypatch.setattr(fake_llm.LLM, "before_result", fake_llm.LLM.before_result)
    monkeypatch.setattr(fake_llm.LLM, "before_piece", fake_llm.LLM.before_piece)
    return fake_llm.LLM


@pytest.fixture
def call(llm, capfd, monkeypatch):
    """Calls the command line; `stdin` is bytes for a pipe, None for a terminal."""
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
