"""Applications that run on the parameter server, one package each."""
