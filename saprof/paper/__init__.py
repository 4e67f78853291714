"""The papers: the figures that they print, our counts of the same figures, and the evidence of recorded rows."""
