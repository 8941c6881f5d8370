"""Text to batches: sources, tokenisers, token files, loaders. Knows nothing of jaxmodels."""
