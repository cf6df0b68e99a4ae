"""Filters: what messages go through before they are sent and after they have arrived (paper, section 5.1).

    [filters]
    push = ["significant", {name = "fixed_point", bytes = 1}, "zstd"]      # in this order, undone in reverse
    pull = ["zstd"]

`filter` says what a filter is, `chain` puts several together, `named` finds them by the names in a job file. Each
filter has a file of its own.
"""
