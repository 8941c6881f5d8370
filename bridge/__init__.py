"""The only package that reads or writes foreign checkpoint formats."""
