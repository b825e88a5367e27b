"""How much memory a run needs."""
