"""Images with captions: sources, preparation, batches."""
