"""Rows times one layer's weights, where those of all layers are stacked."""
