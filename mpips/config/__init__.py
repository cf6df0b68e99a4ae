"""The job file and the program that it names."""
