"""The geometry of a contrastive space: its measures, the gap report, and in `theory` the
simulations.
"""
