"""Files in the package: the model c3-mini and the example corpus."""
