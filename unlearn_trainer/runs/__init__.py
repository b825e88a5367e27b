"""A run from its data to its results."""
