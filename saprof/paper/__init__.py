"""The papers: the figures that they print, our counts beside them, and what the recorded rows say of them."""
