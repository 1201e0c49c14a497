"""Composition: form, harmony, melody, lyrics and arrangement of a demo song."""
