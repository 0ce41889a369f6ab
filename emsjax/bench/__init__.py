"""The benchmark: plain decoding, the padded methods and EMS-SD side by side in one run.

`python -m emsjax.bench --help` lists the options. A run passes through these modules:
settings → prompts → contenders → sweep → cells → records → tables and plots.
"""
