"""Image classification: an encoder's first weights, and fine-tuning on one's own classes."""
