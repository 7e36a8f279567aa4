"""InternImage: layers, sizes, classifiers, released checkpoints."""
