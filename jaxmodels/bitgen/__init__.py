"""bitgen."""
