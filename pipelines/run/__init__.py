"""A run of `prepare`: its Ray Data graph, its state, its crashes and its progress."""
