"""The seeds' own files, read as data: nothing in them is ever executed."""
