"""`c3 demo`: the whole method on the bundled photos, offline, in minutes."""
