"""Measuring: where we are (environment), how long (latency), how much (memory)."""
