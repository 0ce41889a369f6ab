"""Interrupts at moments when Python or a library would lose them."""

import signal
import subprocess
import sys

import pytest

from emsjax.cli import command
from emsjax.cli.interrupts import interrupts_wait
from emsjax.errors import UserError, comes_from_interrupt

# jax has such a callback, which takes much of the time while it loads and compiles.
IN_A_CALLBACK = """
import gc, os, sys, time
from emsjax.cli import command

def callback(phase, info):
    gc.callbacks.remove(callback)
    os.kill(os.getpid(), int(sys.argv[1]))
    sum(range(1000))  # Python handles the signal here

def body():
    gc.callbacks.append(callback)
    gc.collect()
    time.sleep(60)

sys.exit(command.run(body))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_in_garbage_collection_is_not_lost(number):
    script = [sys.executable, "-c", IN_A_CALLBACK, str(int(number))]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("kind", [ImportError, UserError])
def test_an_error_caused_by_an_interrupt_is_reported_as_one(kind, capsys):
    def body():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as stop:
            raise kind("Encountered an error while initializing the extension.") from stop

    assert command.run(body) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_other_errors_do_not_come_from_an_interrupt():
    error = ValueError("no")
    error.__context__ = OSError("neither")
    assert not comes_from_interrupt(error)


def test_handlers_are_restored_afterwards():
    before = sys.unraisablehook, signal.getsignal(signal.SIGTERM)
    assert command.run(lambda: 0) == 0
    assert (sys.unraisablehook, signal.getsignal(signal.SIGTERM)) == before


def test_delayed_interrupts_arrive_after_the_block():
    done = []

    def work():
        with interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            done.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done


def test_an_error_during_the_delay_is_raised():
    before = signal.getsignal(signal.SIGINT)

    def work():
        with interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            raise ImportError

    with pytest.raises(ImportError):
        work()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_wait():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_message_of_an_interrupt_is_printed(capsys):
    app = command.new_app()

    @app.command()
    def stop():
        raise KeyboardInterrupt("repeat the command to continue")

    assert command.run(lambda: command.parse(app, "stop", [])) == 130
    assert capsys.readouterr().err == "interrupted: repeat the command to continue\n"
