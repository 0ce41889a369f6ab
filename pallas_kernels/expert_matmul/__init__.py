"""Multiplies each row with the weights of the experts that it chose."""
