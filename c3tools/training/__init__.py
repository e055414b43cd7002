"""Code that all trainings share: checkpoints, the optimiser and its schedule, named sizes."""
