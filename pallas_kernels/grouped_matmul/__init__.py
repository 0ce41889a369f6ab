"""Multiplies rows with the 4-bit weights of one layer, from a stack of all layers' weights."""
