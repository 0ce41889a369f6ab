"""What steps cost: estimated, measured, kept."""
