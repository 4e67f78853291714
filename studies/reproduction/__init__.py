"""Reproduction: the runs behind the tables of the papers, planned, executed, recorded and reported."""
