"""Vocals in, accompaniments out, over HTTP on Ray Serve."""
