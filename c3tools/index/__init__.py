"""FAISS: build an index over a store, search it by text, image or vector."""
