"""Records: rows, run folders, where they were measured, and how two of them compare. Nothing here imports torch."""
