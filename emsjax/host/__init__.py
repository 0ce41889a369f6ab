"""The machine that runs the code: device, memory, files, caches, versions."""
