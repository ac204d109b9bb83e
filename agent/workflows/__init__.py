"""Workflows: their shapes and rules (which the API reads too), and what executes them."""
