"""Entropy coding: integer networks, frozen tables, and the one door to the range coder."""
