"""Filters: encoders and decoders of the keys and values of messages (paper, section 3.6).

    [filters]
    push = ["significant", {name = "fixed_point", bytes = 1}, "zstd"]      # in this order, decoded in reverse
    pull = ["zstd"]

`filter` defines what a filter is, `chain` applies several, `named` finds them by their names in a job file. Each filter
has a file of its own. Imports what comes before it (errors to transport); knows no tasks and no roles.
"""
