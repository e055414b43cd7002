"""Methods × seeds in one table, for captions and for images."""
