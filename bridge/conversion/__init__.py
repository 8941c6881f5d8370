"""Writing a checkpoint in another format, whole and checked, or not at all."""
