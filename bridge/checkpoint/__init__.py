"""An opened checkpoint: its architecture, its Config, and every tensor under our paths."""
