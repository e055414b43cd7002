"""Every reader against damaged and hostile files; `benchmarks/fuzz.py` runs the same at length."""
