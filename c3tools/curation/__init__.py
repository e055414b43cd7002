"""Wrong pairs and copies: checks before training."""
