"""From the user's files to image and text items, paired by key."""
