"""Judging: the accuracy of trained networks on clean, rotated and attacked images, for runs and for checkpoints, and
the statistics of accuracies over seeds and images. This package neither trains a network nor depends on the tables of a
study."""
