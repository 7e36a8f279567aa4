"""Models of single images: classification."""
