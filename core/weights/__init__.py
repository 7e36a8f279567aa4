"""Weights on disk: files and formats, names of tensors, what does not fit and why, the shipped ones by name."""
