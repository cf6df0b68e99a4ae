"""Latent Dirichlet allocation: topics of documents, sampled by workers that share counts on the servers."""
