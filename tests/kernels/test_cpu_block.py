"""The CPU kernel's arithmetic does not depend on the CPU's vectors."""

import os
import subprocess
import sys

import numpy as np

from emsjax.pallas_kernels.ragged_attention.cpu_block import BLOCK, MASKED, TOGETHER, weigh


def total_of(seen: np.ndarray, tokens: int) -> float:
    """Returns the sum of weights of a row that sees the first of a block's tokens."""
    scores = np.full((1, BLOCK), MASKED, np.float32)
    scores[0, : len(seen)] = seen
    top, total = np.full(1, MASKED, np.float32), np.zeros(1, np.float32)
    weigh(scores, 0, tokens, top, total, np.zeros((1, 4), np.float32), np.empty(BLOCK, np.int32))
    return float(total[0])


def main() -> None:
    """Exits with an error if masked tokens after a row's own change a bit of its sum."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        seen = rng.standard_normal(rng.integers(1, BLOCK + 1)).astype(np.float32)
        fewest = -(-len(seen) // TOGETHER) * TOGETHER
        totals = {total_of(seen, tokens) for tokens in range(fewest, BLOCK + 1, TOGETHER)}
        assert len(totals) == 1, (len(seen), totals)


def test_the_sum_of_weights_does_not_depend_on_masked_tokens():
    main()


def test_nor_on_a_cpu_with_short_vectors():
    """Numba can be told to compile for the least CPU of this kind only when it starts."""
    least = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    command = "from tests.kernels.test_cpu_block import main; main()"
    subprocess.run([sys.executable, "-c", command], env=os.environ | least, check=True)
