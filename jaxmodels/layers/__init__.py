"""What models share: pure functions and cache pytrees. Modules stay in the models."""
