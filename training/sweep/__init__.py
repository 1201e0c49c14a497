"""Sweeps: trials of several configurations on Ray Tune, their pruning and their report."""
