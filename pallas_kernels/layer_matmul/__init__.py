"""Multiplies rows with the weights of one layer, from a stack of all layers' weights."""
