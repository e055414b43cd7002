"""Wrong pairs and copies: what to look at before training."""
