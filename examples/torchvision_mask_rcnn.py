"""torchvision's Mask R-CNN on our encoder, without OpenMMLab: `python torchvision_mask_rcnn.py COCO.json IMAGES`."""

import sys

import torch
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.transforms import v2

from drivestack.backbone import FPN, InternImage


class Encoder(torch.nn.Module):
    out_channels = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = InternImage(channels=32, depths=(1, 1, 2, 1), groups=(2, 4, 8, 16))
        channels = [level.channels for level in self.body.feature_info]
        self.neck = FPN(in_channels=channels, out_channels=self.out_channels, num_outs=5)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {str(i): level for i, level in enumerate(self.neck(self.body(images)))}


def main(annotations: str, images: str, iterations: int = 200) -> None:
    transforms = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.SanitizeBoundingBoxes()])
    files = CocoDetection(images, annotations, transforms=transforms)
    labelled = [i for i, image in enumerate(files.ids) if files.coco.getAnnIds([image], iscrowd=False)]
    dataset = wrap_dataset_for_transforms_v2(files, target_keys=("boxes", "labels", "masks"))
    anchors = AnchorGenerator(tuple((8 * 2**i,) for i in range(5)), ((0.5, 1.0, 2.0),) * 5)
    model = MaskRCNN(
        Encoder(), max(files.coco.cats) + 1, min_size=216, max_size=384, rpn_anchor_generator=anchors
    ).train()
    optimiser = torch.optim.AdamW(model.parameters(), 2e-4)
    for i in range(iterations):
        image, target = dataset[labelled[torch.randint(len(labelled), ()).item()]]
        losses = model([image], [target])
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
        print(i + 1, {name: round(value.item(), 3) for name, value in losses.items()})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
