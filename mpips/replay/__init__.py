"""Recording what took effect in which order, and running it again to the same bits."""
