"""What a step needs and how long it takes, compiled for devices that need not exist."""
