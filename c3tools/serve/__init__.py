"""A web page and an HTTP interface for an index (extra ``serve``)."""
