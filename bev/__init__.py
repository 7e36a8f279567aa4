"""BEVFormer v2: from image features to a bird's-eye view and 3D boxes."""
