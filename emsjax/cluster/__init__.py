"""The hosts that run one model together: how they find, check and watch each other.

Host 0 leads: it reads prompts, decides and writes. The others follow: they run the same programs on
their own devices, because the leader says so (`emsjax/engine/led.py`).
"""
