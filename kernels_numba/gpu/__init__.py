"""GPU kernels, twins of those in `kernels_numba.cpu` with the same names. `launch` and `pairs` have no twin there."""
