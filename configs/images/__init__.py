"""Detectors, segmentors and classifiers of single images."""
