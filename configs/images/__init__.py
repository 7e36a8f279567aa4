"""Models of single images: classification, detection, segmentation."""
