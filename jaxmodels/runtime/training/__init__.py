"""The training loop, and what it does besides steps: samples, divergence, patience, profiles."""
