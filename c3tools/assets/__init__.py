"""Data that ships with the package: the model c3-mini and the example corpus."""
