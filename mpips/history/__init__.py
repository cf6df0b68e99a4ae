"""Histories of a run: each push, pull, round, call and view as its caller saw it, and checks of the promises."""
