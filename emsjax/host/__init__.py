"""The machine at hand: device, files, caches, versions."""
