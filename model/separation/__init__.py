"""Separation of finished songs into vocal and accompaniment by demucs networks."""
