"""Click-through rates by a deep learning recommendation model, in PyTorch."""
