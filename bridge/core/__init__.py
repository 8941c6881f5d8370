"""Tensors that are read when asked for, and tables of weight names: no file, no format."""
