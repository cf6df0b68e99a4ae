"""Benchmarks, one a file, each with `main(arguments)`: `mpips bench NAME`. Every number they print was measured."""
