"""The chi-square test of whether counts come from a distribution."""

import numpy as np
from scipy import stats


def p_value(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the p-value of the test; 0 if an impossible outcome occurred.

    Outcomes that are expected fewer than 5 times are counted together.
    """
    expected = probabilities * counts.sum()
    if counts[expected == 0].any():
        return 0.0
    common = expected >= 5
    observed, wanted = counts[common], expected[common]
    if (~common & (expected > 0)).any():
        observed = np.append(observed, counts[~common].sum())
        wanted = np.append(wanted, expected[~common].sum())
    if len(wanted) == 1:
        return 1.0
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    return float(stats.chi2.sf(statistic, len(wanted) - 1))
