"""The parts that every training shares: checkpoints to continue from, the optimiser and its schedule, named sizes."""
