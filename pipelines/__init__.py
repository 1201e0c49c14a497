"""Verbs on datasets, a stage a file: corpus, sources, segments, encoding, and the Ray Data graph that joins them."""
