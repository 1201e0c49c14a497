"""Audio files: bytes to arrays and back, under limits, in a process of their own where a file may be hostile."""
