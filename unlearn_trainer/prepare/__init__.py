"""Data from where people have it: collections, tables and datasets, cut into the files that a run reads."""
