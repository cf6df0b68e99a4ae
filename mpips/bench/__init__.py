"""Benchmarks, one a module, each with `main(arguments)`: `mpips bench NAME`. Every number they print was measured.

Each package has one subject; `_runs` has the common parts. `paper` and `_paper` repeat the paper's evaluation.
A module whose name begins with `_` is not a benchmark: it supports the others. Only `mpips.cli` imports from here.
"""
