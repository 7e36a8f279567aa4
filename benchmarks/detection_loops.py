"""Time per iteration of a Mask R-CNN with the same small InternImage in three training loops.

    drivestack synthesize data/loops --scenes 2 --keyframes 2 --image-width 320 --labels coco
    python benchmarks/detection_loops.py --data data/loops

ours: mmdet's heads in our loop; mmdet: the same model in mmdet's own Runner, with its own data sets and transforms;
torchvision: its MaskRCNN with our encoder and FPN. Each trains the same images at the same size, two at a time, with
AdamW in float32; rounds alternate, and the median over all iterations but the first five of each round counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BATCH, WARM_UP = 2, 5
ENCODER = dict(channels=32, depths=(1, 2, 5, 2), groups=(2, 4, 8, 16))
WIDTH, LEVELS, CLASSES = 64, 5, 10


def annotations(data: Path, split: str) -> str:
    return f"{data}/annotations/instances_{split}.json"


def ours(data: Path, split: str, size: tuple[int, int], iterations: int) -> list[float]:
    from drivestack.engine.config import load_config
    from drivestack.engine.train import train

    config = load_config("mask_rcnn_tiny_synthetic")
    dataset = config.train_dataloader.dataset
    dataset.source.update(annotations=annotations(data, split), images=f"{data}/images/{split}")
    for step in dataset.pipeline:
        if isinstance(step, dict) and step.get("type") == "Resize":
            step["scale"] = size
    config.train_dataloader.batch_size = BATCH
    config.update(validation=None, log_interval=1)
    config.train_cfg.max_iters = iterations
    with tempfile.TemporaryDirectory() as folder:
        train(config, folder)
        records = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return [record["seconds_per_iter"] for record in records if "seconds_per_iter" in record]


def mmdets(data: Path, split: str, size: tuple[int, int], iterations: int) -> list[float]:
    from mmengine.config import Config
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    from drivestack.backbone.pretrain.detection.heads import mask_rcnn
    from drivestack.backbone.pretrain.openmmlab import toolbox
    from drivestack.engine.config import load_config

    class Clock(Hook):
        def __init__(self) -> None:
            self.times: list[float] = []

        def after_train_iter(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    options = {key: value for key, value in load_config("mask_rcnn_tiny_synthetic").model.net.items() if key != "type"}
    names = tuple(category["name"] for category in json.loads(Path(annotations(data, split)).read_text())["categories"])
    pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations", with_bbox=True, with_mask=True, poly2mask=False),
        dict(type="Resize", scale=size, keep_ratio=True),
        dict(type="RandomFlip", prob=0.5),
        dict(type="PackDetInputs"),
    ]
    clock = Clock()
    with toolbox("instances"), tempfile.TemporaryDirectory() as folder:
        config = Config(
            dict(
                default_scope="mmdet",
                work_dir=folder,
                model=mask_rcnn(**options),
                train_dataloader=dict(
                    batch_size=BATCH,
                    num_workers=0,
                    sampler=dict(type="InfiniteSampler"),
                    dataset=dict(
                        type="CocoDataset",
                        ann_file=annotations(data, split),
                        data_prefix=dict(img=f"{data}/images/{split}/"),
                        metainfo=dict(classes=names),
                        filter_cfg=dict(filter_empty_gt=True),
                        pipeline=pipeline,
                    ),
                ),
                train_cfg=dict(type="IterBasedTrainLoop", max_iters=iterations),
                optim_wrapper=dict(
                    type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-4), clip_grad=dict(max_norm=10.0)
                ),
                default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=10**9, save_last=False)),
                log_level="ERROR",
            )
        )
        runner = Runner.from_cfg(config)
        runner.register_hook(clock)
        runner.train()
    return [b - a for a, b in zip(clock.times, clock.times[1:])]


class Encoder(nn.Module):
    out_channels = WIDTH

    def __init__(self) -> None:
        from drivestack.backbone import FPN, InternImage

        super().__init__()
        self.body = InternImage(**ENCODER)
        channels = [level.channels for level in self.body.feature_info]
        self.neck = FPN(in_channels=channels, out_channels=WIDTH, num_outs=LEVELS)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {str(i): level for i, level in enumerate(self.neck(self.body(images)))}


def torchvisions(data: Path, split: str, size: tuple[int, int], iterations: int) -> list[float]:
    from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.transforms import v2

    steps = [v2.ToImage(), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
    files = CocoDetection(
        f"{data}/images/{split}",
        annotations(data, split),
        transforms=v2.Compose([*steps, v2.SanitizeBoundingBoxes()]),
    )
    labelled = [i for i, image in enumerate(files.ids) if files.coco.getAnnIds([image], iscrowd=False)]
    dataset = wrap_dataset_for_transforms_v2(files, target_keys=("boxes", "labels", "masks"))
    anchors = AnchorGenerator(tuple((16 * 2**i,) for i in range(LEVELS)), ((0.5, 1.0, 2.0),) * LEVELS)
    model = MaskRCNN(
        Encoder(), CLASSES + 1, min_size=min(size), max_size=max(size), rpn_anchor_generator=anchors
    ).train()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-4)
    times, order = [], torch.Generator().manual_seed(0)
    for _ in range(iterations):
        began = time.perf_counter()
        chosen = [labelled[int(torch.randint(len(labelled), (), generator=order))] for _ in range(BATCH)]
        images, targets = zip(*(dataset[i] for i in chosen))
        loss = sum(model(list(images), list(targets)).values())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        times.append(time.perf_counter() - began)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="as synthesize --labels coco writes it")
    parser.add_argument("--split", default="train")
    parser.add_argument("--width", type=int, default=320, help="of the images in training")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    size = (options.width, options.width * 9 // 16)
    loops = {"ours": ours, "mmdet": mmdets, "torchvision": torchvisions}
    found: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(options.rounds):
        for name, loop in loops.items():
            torch.manual_seed(0)
            found[name] += loop(options.data, options.split, size, options.iterations)[WARM_UP:]
    own = statistics.median(found["ours"])
    print(f"\nMask R-CNN, InternImage of 32 channels, {size[0]} x {size[1]} px, batch {BATCH}")
    for name, times in found.items():
        median = statistics.median(times)
        print(f"{name:<12} {median:.3f} s per iteration (least {min(times):.3f}), {median / own:.2f} of ours")


if __name__ == "__main__":
    main()
