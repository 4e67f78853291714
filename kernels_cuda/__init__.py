"""Handwritten CUDA kernels and their build: leaves that know arrays and integers, and nothing of saprof."""
