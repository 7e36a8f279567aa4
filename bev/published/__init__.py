"""BEVFormer v1, for its released checkpoints."""
