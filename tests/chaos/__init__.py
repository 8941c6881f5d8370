"""What a run must survive: kills, signals, a full disk, damaged files. By hand: `make chaos`."""
