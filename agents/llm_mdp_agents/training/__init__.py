"""Training: the loop, runs and their folders, checkpoints, processes, evaluation."""
