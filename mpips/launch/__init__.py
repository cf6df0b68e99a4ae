"""Starting ranks: mpirun and srun, Slurm's environment, batch scripts, and which node has which ranks."""
