"""Scoring of one task each: official files in, rows of metrics.json and a line a sample out. No torch."""
