"""Converts a checkpoint to another format: complete and checked, or not at all."""
