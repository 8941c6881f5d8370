"""Checks of a checkpoint: inspect, verify, diff, and parity with PyTorch."""
