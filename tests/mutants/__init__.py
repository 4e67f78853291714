"""Mutants: planted mistakes, and the tests that must fail with each of them. `run.py` plants them one by one."""
