"""Evaluation of a run's checkpoints as SLURM jobs: what the list wants, what is there, what is submitted. No torch."""
