"""Ranks and whole runs that are killed at random instants: no update may be lost or applied twice."""
