"""Flags, presets and what they resolve to."""
