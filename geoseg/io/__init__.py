"""Formats: scenes that are read, the working store, and the files that a run leaves behind."""
