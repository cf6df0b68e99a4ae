"""The commands on a run directory: control the run, report and trace it, repeat it, compare and package it."""
