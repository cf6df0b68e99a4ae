"""The benchmark that runs for hours: faults every few seconds, and nothing that grows."""
