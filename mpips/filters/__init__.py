"""Filters: encoders and decoders of the keys and values of messages (paper, section 3.6).

    [filters]
    push = ["significant", {name = "fixed_point", bytes = 1}, "zstd"]      # in this order, decoded in reverse
    pull = ["zstd"]

`filter` defines what a filter is, `chain` applies several, `named` finds them by their names in a job file. Each
filter has a file of its own. May import: the root modules, process/, files/, jit/, rundir/, storage/, data/ and
transport/. Does not depend on tasks/ or on roles (cluster/).
"""
