"""Evaluation: rows, measures and scores of a checkpoint, with the report and its plots."""
