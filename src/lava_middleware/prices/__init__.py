"""Prices by provider and model: a dated snapshot of two open catalogues, and what an operator lays over it."""
