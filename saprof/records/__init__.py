"""Records: rows, run folders, their provenance, and comparisons of two of them. Nothing here imports torch."""
