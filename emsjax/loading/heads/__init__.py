"""Heads that others trained for a target: EAGLE's, in the formats in which they are published."""
