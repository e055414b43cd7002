"""The geometry of a contrastive space: what is measured, what the report shows, and the theory, simulated."""
