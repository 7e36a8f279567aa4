"""One process of `models.py`: runs the tiny BEV model of whatever drivestack it finds first, a turn per line of input.

A line says how often to run what (see `turns`); the answer is the milliseconds a call took, or "none" where this
version has no such thing. Two of these, started with different PYTHONPATHs, compare two versions of the package.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from mmengine.config import Config

import drivestack
from drivestack.core.batch import Batch
from drivestack.core.registries import MODELS

CAMERAS, HEIGHT, WIDTH = 6, 128, 384


def rig() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Six cameras all around: image_from_bev [N, 4, 4], intrinsics [N, 3, 3], bev_from_camera [N, 4, 4]."""
    intrinsics = torch.tensor([[300.0, 0, WIDTH / 2], [0, 300, 50], [0, 0, 1]])
    camera_from_body = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    matrices, poses = [], []
    for n in range(CAMERAS):
        c, s = math.cos(2 * math.pi * n / CAMERAS), math.sin(2 * math.pi * n / CAMERAS)
        camera_from_bev = torch.eye(4)
        camera_from_bev[:3, :3] = camera_from_body @ torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        image_from_bev = torch.eye(4)
        image_from_bev[:3] = intrinsics @ camera_from_bev[:3]
        matrices.append(image_from_bev)
        poses.append(torch.linalg.inv(camera_from_bev))
    return torch.stack(matrices), intrinsics.expand(CAMERAS, 3, 3), torch.stack(poses)


def batch() -> Batch:
    image_from_bev, intrinsics, bev_from_camera = rig()
    boxes = torch.randn(20, 9) * torch.tensor([15, 15, 0.5, 0, 0, 0, 1, 1, 1]) + torch.tensor(
        [0, 0, -1.0, 4, 2, 1.5, 0, 0, 0]
    )
    geometry = {"image_from_bev": image_from_bev[None, None], "bev_from_camera": bev_from_camera[None]}
    if "image_from_bev" not in Batch.__dataclass_fields__:  # before the BEV frame had its name
        geometry = {name.replace("bev", "lidar"): value for name, value in geometry.items()}
    return Batch(
        **geometry,
        images=torch.randn(1, 1, CAMERAS, 3, HEIGHT, WIDTH),
        frame_offsets=(0,),
        frame_valid=torch.ones(1, 1, dtype=torch.bool),
        image_size_px=torch.tensor([HEIGHT, WIDTH]).expand(1, 1, CAMERAS, 2),
        image_flipped=torch.zeros(1, dtype=torch.bool),
        bda=torch.eye(3)[None],
        intrinsics=intrinsics[None],
        gt_boxes=[boxes],
        gt_labels=[torch.randint(10, (20,))],
    )


def turns() -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    config = Config.fromfile(Path(drivestack.__file__).parent / "configs/boxes/bevformerv2_tiny_synthetic.py")
    model = MODELS.build(config.model)
    for name, parameter in model.named_parameters():  # trained offsets and masks are not zero
        if name.endswith(("offset.weight", "mask.weight", "sampling_offsets.weight", "attention_weights.weight")):
            torch.nn.init.normal_(parameter, std=0.02)
    sample = batch()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    try:
        from drivestack.backbone import prepare_inference
    except ImportError:
        prepared = None
    else:
        prepared = prepare_inference(model)

    def autocast(half: bool):
        return torch.autocast("cpu", torch.bfloat16) if half else nullcontext()

    def frame(network, half: bool) -> None:
        """Images to outputs of the decoder, as `predict` does it."""
        network.eval()
        with torch.no_grad(), autocast(half):
            levels, features = network.encode_clip(sample)
            if hasattr(network, "boxes"):
                network.boxes(features, levels, sample)
            else:  # before boxes were a task
                extra = network._extra_queries(features.bev, network._dense(features.bev), None, sample)
                network.pts_bbox_head.decode(features.bev, extra)

    def step(half: bool) -> None:
        model.train()
        with autocast(half):
            loss = sum(model.loss(sample).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    found = {"train float32": lambda: step(False), "train bfloat16": lambda: step(True)}
    for label, half in (("float32", False), ("bfloat16", True)):
        found[f"frame {label}"] = lambda half=half: frame(model, half)
        if prepared is not None:
            found[f"prepared {label}"] = lambda half=half: frame(prepared, half)
    return found


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    if sys.argv[2:] == ["as the program"]:
        from drivestack.cli.main import keep_freed_memory

        keep_freed_memory()
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing else may get between the answers
    runs = turns()
    for request in sys.stdin:
        calls, name = request.split(maxsplit=1)
        run = runs.get(name.strip())
        if run is None:
            print("none", file=answers, flush=True)
            continue
        start = time.perf_counter()
        for _ in range(int(calls)):
            run()
        print(f"{1e3 * (time.perf_counter() - start) / int(calls):.4f}", file=answers, flush=True)


if __name__ == "__main__":
    main()
