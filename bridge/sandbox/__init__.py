"""Legacy files are read in a process with limits; only tensors and plain values come back."""
