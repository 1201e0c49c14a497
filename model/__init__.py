"""The model: nouns on tensors, from attention to `accompany`. Imports torch and numeric libraries only."""
