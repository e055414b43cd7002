"""Code shared by all training runs: checkpoints, the optimiser and its schedule, named sizes."""
