-- mpips in an environment that was made by: python3 -m venv ROOT && ROOT/bin/pip install 'mpips[zstd,tables]'
help([[The parameter server (Li et al., OSDI 2014) as an ordinary MPI job: mpips --help]])
whatis("Name: mpips")
whatis("Version: 0.1.0")
whatis("Description: the parameter server as an ordinary MPI job")

-- The MPI that mpi4py was built with, or whose ABI it loads.
prereq_any("openmpi", "mpich")

local root = "/opt/mpips/0.1.0"
prepend_path("PATH", pathJoin(root, "bin"))
prepend_path("MANPATH", pathJoin(root, "share/man"))
