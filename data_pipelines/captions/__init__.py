"""Images with captions to batches: sources, what is prepared of them, loaders."""
