"""Single pushes and pulls, and the parts that their time goes to: filters and the key index."""
