"""Starting ranks: mpirun and srun, Slurm's environment, batch scripts, and the placement of ranks on nodes.

Not in the paper, whose implementation starts its nodes through a cluster resource manager. May import the root modules,
process/ to cluster/, tracing/, config/ and provenance/.
"""
