"""The vocabulary head in tiles: logits are never whole."""
