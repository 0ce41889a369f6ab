"""An abort waits for a thread that ends the process otherwise."""

import subprocess
import sys

ABORTED = """
import ctypes, os, threading
from emsjax.cluster.aborts import delay_aborts

delay_aborts()
# Without the interpreter's lock, as jax aborts.
threading.Thread(target=ctypes.CDLL(None).abort, daemon=True).start()
threading.Event().wait(0.3)
print("first is gone", flush=True)
os._exit(2)
"""


def test_a_thread_ends_a_process_that_is_being_aborted():
    done = subprocess.run(
        [sys.executable, "-c", ABORTED], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "first is gone\n"), done.stderr
