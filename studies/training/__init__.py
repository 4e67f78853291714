"""Training: one run, its steps, checkpoints and processes."""
