"""What all commands share: how they begin, end and are interrupted."""
