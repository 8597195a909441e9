"""Evaluation of a run's checkpoints as SLURM jobs: what is wanted, what is there, what is to be submitted. No torch."""
