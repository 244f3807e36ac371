"""Benchmarks: each is a command of its own that says what it measured. Not run by pytest."""
