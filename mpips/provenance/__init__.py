"""Where a run comes from, and why it failed: code, inputs, machine, the first failure."""
