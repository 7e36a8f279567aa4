"""Image encoders and what belongs to them: InternImage, ResNet, FPN, checkpoints."""
