"""Scoring, one file a task: it reads official files and makes the rows of metrics.json and of per_sample.jsonl. No
torch."""
