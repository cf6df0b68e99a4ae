"""Checkpoints: HDF5 shards, manifests, and whose a checkpoint is (format: checkpoints/README.md)."""
