"""Runs survive kills, signals, full disks and damaged files. Run by hand: `make chaos`."""
