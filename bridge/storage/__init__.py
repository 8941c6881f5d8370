"""Containers of tensors: safetensors, Orbax, GGUF."""
