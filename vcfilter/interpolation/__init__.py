"""Frames between frames: quadratic motion from four frames, without networks."""
