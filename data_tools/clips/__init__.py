"""Frames to Batches: images read, augmented, collated, sampled."""
