"""Voices that sing words: a neural one, and recorded syllables that a vocoder moves."""
