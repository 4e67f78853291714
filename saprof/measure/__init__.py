"""Measuring: cells, their latency and memory, the roofs of the machine, and the check against the reference."""

from saprof.lazy import callable_as

callable_as(__name__, "measure", "saprof.measure.function")
