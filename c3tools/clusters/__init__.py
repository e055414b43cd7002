"""Clusters of the rows of one modality, or of images and texts together."""
