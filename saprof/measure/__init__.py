"""Measuring: cells, their latency and memory, the roofs of the machine, and the check against the reference."""
