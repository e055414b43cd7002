"""Scores with their uncertainty: captions, retrieval, and the bootstrap."""
