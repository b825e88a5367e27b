"""A model as it is loaded, trained in part, and saved."""
