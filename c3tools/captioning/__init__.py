"""Captions from embeddings: decoders, their training, generation, evaluation, and the methods to
compare with.
"""
