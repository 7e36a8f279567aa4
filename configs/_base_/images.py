"""How images become network input, beyond what a data set's settings say."""

# What encoders pretrained on ImageNet in RGB expect, InternImage among them.
imagenet_rgb = dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), channels="rgb")
