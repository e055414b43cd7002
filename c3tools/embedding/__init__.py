"""Corpus and encoder → store: `embed`, its plan, its shards and its summary."""
