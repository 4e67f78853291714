"""Mutants: planted mistakes, and the tests that must fail with each of them. `campaign.py` plants them one by one."""
