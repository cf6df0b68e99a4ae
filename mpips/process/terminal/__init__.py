"""What commands show on a terminal: their help, and what they do while nothing moves."""
