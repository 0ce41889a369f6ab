"""Every process writes the same files and directories in every round."""

import sys
import time
from pathlib import Path

from emsjax.errors import UserError
from emsjax.host.files import new_directory, replace_text
from emsjax.host.locks import alone, alone_in
from tests.together import take_turns

MINE, WHERE = sys.argv[1], Path(sys.argv[4])
LETTERS = 200_000


def write(turn: int) -> list:
    replace_text(WHERE / f"text-{turn}", MINE * LETTERS)
    return [_make(turn), _count(turn), _work(turn)]


def _make(turn: int) -> str:
    try:
        with new_directory(WHERE / f"made-{turn}") as partial:
            (partial / "a").write_text(MINE)
            time.sleep(0.001)
            (partial / "b").write_text(MINE)
    except UserError as error:
        return str(error)
    return MINE


def _count(turn: int) -> int:
    counter = WHERE / f"counter-{turn}"
    for _ in range(20):
        with alone(WHERE / f".counter-{turn}.lock"):
            before = int(counter.read_text()) if counter.exists() else 0
            counter.write_text(str(before + 1))
    return 20


def _work(turn: int) -> str:
    log = WHERE / f"log-{turn}"
    try:
        with alone_in(WHERE / f"runs-{turn}" / "run", "busy"), log.open("a") as file:
            file.write("begins ")
            file.flush()
            time.sleep(0.001)
            file.write("ends ")
    except UserError as error:
        return str(error)
    return MINE


if __name__ == "__main__":
    take_turns(write)
