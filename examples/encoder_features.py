"""Feature maps of an InternImage from one image, by level.

python examples/encoder_features.py street/000/CAM_FRONT.jpg --variant T
"""

import argparse

import numpy as np
import torch
from PIL import Image

from drivestack.backbone import internimage, load_checkpoint, prepare_inference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("--variant", default="T", choices=("T", "S", "B", "L", "XL", "H", "G"))
    parser.add_argument("--weights", help="a released checkpoint; without, random weights")
    options = parser.parse_args()

    encoder = internimage(options.variant, "features", out_indices=(0, 1, 2, 3))
    if options.weights:
        print(load_checkpoint(encoder, options.weights))
    pixels = torch.from_numpy(np.array(Image.open(options.image).convert("RGB"))).permute(2, 0, 1).float()  # [3, H, W]
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    with torch.inference_mode():
        maps = prepare_inference(encoder)(((pixels - mean) / std)[None])
    for level, (features, info) in enumerate(zip(maps, encoder.feature_info)):
        print(f"level {level}: {list(features.shape)}, {info.channels} channels, stride {info.stride}")


if __name__ == "__main__":
    main()
