"""Single pushes and pulls, and parts of their time: filters and the key index."""
