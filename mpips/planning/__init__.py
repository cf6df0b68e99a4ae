"""What a job takes on other machines: the model of costs, and failures."""
