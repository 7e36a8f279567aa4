"""Pictures and clips of frames, predictions and ground truth."""
