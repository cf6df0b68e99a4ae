"""Complete training runs of the applications in jobs/, compared with other programs for the same problem."""
