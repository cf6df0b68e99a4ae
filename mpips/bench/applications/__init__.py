"""Whole training runs of the applications in jobs/, beside other programs that solve the same problem."""
