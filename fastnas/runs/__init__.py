"""What a search and a retraining share: options, the run's folder, checkpoints, Ctrl-C, optimisers."""
