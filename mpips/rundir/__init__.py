"""What a run leaves on disk, and how it is reached there: its folder, logs, progress table and orders."""
