"""GPU kernels, twins of those in `kernels_numba.cpu` with the same names; only GPU kernels need `launch` and
`pairs`."""
