"""Algorithms of clustering: k-means, and centroids of two modalities together."""
