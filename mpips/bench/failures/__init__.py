"""Ranks and complete runs that are killed at random times: no update may be lost or applied twice."""
