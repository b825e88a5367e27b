"""The frozen teacher and what it answers."""
