"""What a model needs and gives on a device that is not here: memory, step time, speedup."""
