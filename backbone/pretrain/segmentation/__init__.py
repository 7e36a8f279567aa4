"""Semantic segmentation: mmseg's heads on InternImage, their data and scores."""
