"""Files that are small on disk and large in memory; `benchmarks/bombs.py` gives all of them to the real commands."""
