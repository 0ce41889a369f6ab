"""The command line of generation: `python -m emsjax.generate`."""
