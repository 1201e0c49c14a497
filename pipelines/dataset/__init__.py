"""Verbs on a stored dataset: write, commit, reconcile, compact, check, take down."""
