"""PyTorch twins of the models that transformers does not have."""
