"""Judging: trained networks on clean, turned and attacked images, and the statistics of what they got right."""
