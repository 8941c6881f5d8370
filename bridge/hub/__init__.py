"""The Hugging Face hub: push and pull."""
