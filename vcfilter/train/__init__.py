"""Training: data, the classical start, the loop, and freezing into a weights file."""
