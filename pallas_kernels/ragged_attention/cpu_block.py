"""The arithmetic of attention on CPU for one block of a slot's tokens, compiled by Numba.

Loops over a head's elements become vector instructions. LLVM may add their terms in any order, but
it is the same order in every call, so a row's result does not depend on the rows next to it. The
sum over tokens has a fixed order, because on some CPUs LLVM adds 8 tokens in another than 32.
"""

import math

import numpy as np

from emsjax.pallas_kernels.host_call import compiled, compiled_in_order, prefetch

BLOCK = 32  # tokens whose keys and values fit into the fastest cache
TOGETHER = 8  # tokens that the inner loops take at a time, which divides BLOCK
# The score of a masked token, as in the reference.
MASKED = np.float32(-1e30)

ZERO, ONE = np.float32(0), np.float32(1)
_HALF, _LOG2_E = np.float32(0.5), np.float32(math.log2(math.e))
# 2**x is the sum of these times powers of x, from the second on, for x from -0.5 to 0.5.
_E1, _E2, _E3, _E4, _E5, _E6 = (
    np.float32(math.log(2) ** n / math.factorial(n)) for n in range(1, 7)
)
_LEAST = np.float32(-127)  # the exponent at which a float32 becomes 0


@compiled
def _fetch_ahead(address: int, first: int, stride: int, width: int) -> None:
    """Starts to load `width` bytes of each of the next tokens, `stride` bytes apart.

    Without it, memory would be idle during the arithmetic.
    """
    for token in range(first, first + TOGETHER):
        for line in range(0, width, 64):
            prefetch(address + token * stride + line)


@compiled
def score(
    q: np.ndarray,
    k: np.ndarray,
    scores: np.ndarray,
    tokens: int,
    scale: float,
    ahead: int,
    stride: int,
) -> None:
    """Writes scale * q @ k.T to `scores`.

    Args:
      q: float32[M, H].
      k: float32[BLOCK, H].
      scores: float32[M, BLOCK].
      tokens: how many tokens of the block to use, a multiple of TOGETHER.
      scale: factor on the scores.
      ahead: address of what will be read next.
      stride: bytes between tokens there.
    """
    for j in range(0, tokens, TOGETHER):
        _fetch_ahead(ahead, j, stride, 4 * q.shape[1])
        for m in range(q.shape[0]):
            s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = ZERO
            for h in range(q.shape[1]):
                x = q[m, h]
                s0 += x * k[j, h]
                s1 += x * k[j + 1, h]
                s2 += x * k[j + 2, h]
                s3 += x * k[j + 3, h]
                s4 += x * k[j + 4, h]
                s5 += x * k[j + 5, h]
                s6 += x * k[j + 6, h]
                s7 += x * k[j + 7, h]
            scores[m, j] = s0 * scale
            scores[m, j + 1] = s1 * scale
            scores[m, j + 2] = s2 * scale
            scores[m, j + 3] = s3 * scale
            scores[m, j + 4] = s4 * scale
            scores[m, j + 5] = s5 * scale
            scores[m, j + 6] = s6 * scale
            scores[m, j + 7] = s7 * scale


@compiled
def gather(
    weights: np.ndarray, v: np.ndarray, out: np.ndarray, tokens: int, ahead: int, stride: int
) -> None:
    """Adds weights @ v to `out`, float32[M, H]; the other arguments are as for `score`."""
    for j in range(0, tokens, TOGETHER):
        _fetch_ahead(ahead, j, stride, 4 * v.shape[1])
        for m in range(out.shape[0]):
            w0, w1, w2, w3 = weights[m, j], weights[m, j + 1], weights[m, j + 2], weights[m, j + 3]
            w4, w5 = weights[m, j + 4], weights[m, j + 5]
            w6, w7 = weights[m, j + 6], weights[m, j + 7]
            for h in range(v.shape[1]):
                first = w0 * v[j, h] + w1 * v[j + 1, h] + w2 * v[j + 2, h] + w3 * v[j + 3, h]
                last = w4 * v[j + 4, h] + w5 * v[j + 5, h] + w6 * v[j + 6, h] + w7 * v[j + 7, h]
                out[m, h] += first + last


@compiled
def soften(scores: np.ndarray, tokens: int, cap: float) -> None:
    """Replaces each score x by cap * tanh(x / cap)."""
    for m in range(scores.shape[0]):
        for j in range(tokens):
            scores[m, j] = cap * np.float32(math.tanh(scores[m, j] / cap))


@compiled_in_order
def _sum(x: np.ndarray, row: int, tokens: int) -> np.float32:
    """Returns the sum of a row's first tokens; zeros at their end do not change a bit of it."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = ZERO
    for j in range(0, tokens, TOGETHER):
        s0 += x[row, j]
        s1 += x[row, j + 1]
        s2 += x[row, j + 2]
        s3 += x[row, j + 3]
        s4 += x[row, j + 4]
        s5 += x[row, j + 5]
        s6 += x[row, j + 6]
        s7 += x[row, j + 7]
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


@compiled
def weigh(
    scores: np.ndarray,
    row: int,
    tokens: int,
    top: np.ndarray,
    total: np.ndarray,
    out: np.ndarray,
    bits: np.ndarray,
) -> None:
    """Turns a row's scores into weights, and brings what it has gathered to the same scale.

    Args:
      scores: float32[M, BLOCK], MASKED where the row does not see a token.
      row: the row.
      tokens: how many tokens of the block to use, a multiple of TOGETHER.
      top: float32[M], the largest score so far.
      total: float32[M], the sum of weights so far; NaN once a visible score is NaN or inf.
      out: float32[M, H], the weighted sum of values so far.
      bits: int32[BLOCK] of scratch.
    """
    highest = top[row]
    for j in range(tokens):
        highest = max(highest, scores[row, j])  # the first argument if the second is NaN
    # While a row has seen nothing but NaN, masked tokens must not weigh exp(MASKED - MASKED).
    pivot = highest if highest > MASKED else ZERO
    # exp by 2**x, as a power of two and a polynomial, because calls of exp are not vectorised.
    powers = bits.view(np.float32)
    for j in range(tokens):
        exponent = max((scores[row, j] - pivot) * _LOG2_E, _LEAST)  # NaN stays
        whole = np.floor(exponent + _HALF)
        x = exponent - whole
        bits[j] = (np.int32(whole) + 127) << 23  # 2**whole; 0 for masked tokens
        scores[row, j] = ONE + x * (_E1 + x * (_E2 + x * (_E3 + x * (_E4 + x * (_E5 + x * _E6)))))
    for j in range(tokens):
        scores[row, j] *= powers[j]
    if highest > top[row]:
        decay = np.float32(math.exp(top[row] - highest))
        total[row] *= decay
        for h in range(out.shape[1]):
            out[row, h] *= decay
        top[row] = highest
    total[row] += _sum(scores, row, tokens)
