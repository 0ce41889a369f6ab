"""The device loop: what a step is, and the compiled programs over one state."""
