"""Checkpoints: HDF5 shards, manifests, and the lineage of runs (format: checkpoints/README.md).

Durable storage besides the replication of the paper's section 4.4. May import: the root modules, process/, files/,
jit/, rundir/, storage/, data/, transport/, filters/ and tasks/.
"""
