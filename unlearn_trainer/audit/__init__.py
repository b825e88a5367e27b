"""An empirical audit: whether a model still has what it was to forget, language by language, also under attack."""

from .run import audit, audit_run, check_arguments

__all__ = ["audit", "audit_run", "check_arguments"]
