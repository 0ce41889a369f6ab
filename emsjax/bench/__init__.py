"""The benchmark: plain decoding, the padded methods and EMS-SD side by side in one run.

`python -m emsjax.bench --help` tells how to call it; from a call to its results:
settings → prompts → contenders → waves → cells → records → table and plots.
"""
