"""Detection and instance segmentation: mmdet's heads on InternImage, their data and scores."""
