"""What can be said of a checkpoint: inspect, verify, diff, and parity with PyTorch."""
