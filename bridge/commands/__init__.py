"""The verbs that move checkpoints: convert, inspect, verify, diff, push, pull."""
