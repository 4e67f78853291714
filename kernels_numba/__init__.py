"""Numba kernels, for CPU and CUDA: leaves that know arrays and integers, and nothing of saprof."""
