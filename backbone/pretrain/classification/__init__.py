"""Image classification: the training that gives an encoder its first weights, and fine-tuning on classes of one's own."""
