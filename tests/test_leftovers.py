"""The tests leave nothing behind."""

import subprocess
import sys
from pathlib import Path

MAKE = """
from tests.tiny import temporary_directory
directory = temporary_directory("tiny-leftovers-")
(directory / "model").mkdir()
(directory / "model" / "weights").write_text("weights")
print(directory)
"""


def test_checkpoints_go_with_the_process_that_made_them():
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", MAKE]
    made = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    directory = Path(made.stdout.strip())
    assert directory.name.startswith("tiny-leftovers-")
    assert not directory.exists()
