"""Distributed sketching: count keys of a stream in a small table that the servers hold."""
