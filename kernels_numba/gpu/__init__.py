"""GPU kernels, twins of those in `kernels_numba.cpu`."""
