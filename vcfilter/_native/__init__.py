"""Compiled hot loops; each has a plain reference in vcfilter and a test that holds them equal."""
