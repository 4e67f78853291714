"""Judging: the accuracy of trained networks on clean, rotated and attacked images, for runs and for checkpoints, and
the statistics of accuracies over seeds and images. Nothing here trains a network or depends on the tables of a
study."""
