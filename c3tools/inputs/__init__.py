"""Vectors that people bring: files of other programs, paired by id and written to a store."""
