"""The costs of steps: estimated, measured, and kept on disk."""
