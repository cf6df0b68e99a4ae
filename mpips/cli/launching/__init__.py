"""The commands that plan, check and start runs, on this machine or as a batch job."""
