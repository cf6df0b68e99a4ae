"""The paper's evaluation, again: an experiment a module, for `mpips bench paper`."""
