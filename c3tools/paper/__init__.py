"""Parts that serve the paper's tables alone: image generators, ablations, and its theory simulated.

Nothing below imports it, so a reader of the rest can leave it aside.
"""
