"""Metrics: fit of a band to its vocal, leakage, distances between sets, and the embeddings that they use."""
