"""Data sets to checked Frames, one file per data set."""
