"""Training data: segments in memory or streamed by Ray, batches, and their random streams."""
