"""Judging: the accuracy of trained networks on clean, turned and attacked images, of runs and of checkpoints, and the
statistics of accuracies over seeds and images. Nothing here trains, and nothing here knows the tables of a study."""
