"""The engine: continuous batching of requests by due time. It runs without Ray Serve."""
