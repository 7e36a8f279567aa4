"""The types that cross rooms (frames, labels, batch, answers), errors, files, weights on disk."""
