"""Methods x seeds in one table."""
