"""Read the user's files as image and text items, paired by key."""
