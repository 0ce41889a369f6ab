"""The paper's measurements (EMS-SD, arXiv 2405.07542): speedup over plain decoding by batch size.

OPT-6.7B in float16 on a GPU, CNN/DailyMail, LLMA drafts, 128 new tokens, prefill not counted.
"""

from types import MappingProxyType

SPEEDUP = MappingProxyType(
    {
        "vanilla": {1: 3.94, 2: 3.21, 4: 2.26, 8: 1.37, 12: 0.99, 16: 0.83, 20: 0.70, 24: 0.66},
        "unpad-kv": {2: 3.20, 4: 2.37, 8: 1.47, 16: 0.95, 24: 0.76},
        "unpad-input": {2: 3.47, 4: 2.83, 8: 2.02, 16: 1.46, 24: 1.23},
        "ems": {2: 3.50, 4: 2.83, 8: 2.17, 12: 1.81, 16: 1.63, 20: 1.46, 24: 1.41},
    }
)
