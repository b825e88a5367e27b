"""Small models, rows, files and subjects that many tests share."""
