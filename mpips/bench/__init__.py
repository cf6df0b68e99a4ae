"""Benchmarks, one a module, each with `main(arguments)`: `mpips bench NAME`. Every number they print was measured.

Each package is a subject; `_runs` is what they share. `paper` and `_paper` repeat the paper's evaluation (section 5).
A module whose name begins with `_` is no benchmark: it supports those beside it. Only `mpips.cli` imports from here.
"""
