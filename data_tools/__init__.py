"""Readers, transforms, clips, sampler and the synthetic world."""
