"""The committed outcome of each claim."""
