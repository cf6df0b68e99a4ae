"""The paper's evaluation, repeated: one experiment per module, for `mpips bench paper`."""
