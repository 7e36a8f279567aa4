"""Labels of other data sets as files in COCO's format, for those that no reader of detectors knows."""
