"""2D pretraining of the image encoders: room for classification, detection and segmentation pipelines."""
