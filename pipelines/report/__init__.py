"""The page on a dataset: its figures, a sample of its rows, and pairs to listen to."""
