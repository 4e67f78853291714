"""Training: one run, from its config to its result. The engine takes steps, a session carries a run from its newest
checkpoint to its end, and the run's folder, checkpoints, metrics and processes each have a module. Code for several
runs belongs in reproduction, and code that uses a trained network in judging."""
