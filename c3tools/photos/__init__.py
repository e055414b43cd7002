"""A photo's bytes: found again by its path, and decoded in processes with a time limit."""
