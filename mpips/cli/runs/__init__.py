"""The commands about a run directory: steer the run, report and trace it, repeat it, compare and package it."""
