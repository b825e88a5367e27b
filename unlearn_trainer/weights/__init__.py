"""Adaptive language weights."""
