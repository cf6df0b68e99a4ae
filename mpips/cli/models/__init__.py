"""The commands about checkpoints, data and trained models."""
