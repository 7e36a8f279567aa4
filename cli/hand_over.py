"""The verb `drivestack hand-over`: pretrained weights of any pipeline for the image encoder of a BEV config."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import notes_of, verb
from .outputs import writing


def add_hand_over(verbs: Any) -> None:
    examples = [
        "drivestack hand-over runs/mono3d_tiny_synthetic/best.pth perception_tiny_synthetic --out mono.safetensors",
        "drivestack train perception_tiny_synthetic --fine-tune mono.safetensors",
        "drivestack hand-over mask_rcnn_internimage_t_fpn_1x_coco.pth bevformerv2_internimage_t_t1 \\",
        "    --out det.safetensors --note data='COCO 2017' --note split=train",
    ]
    summary = "give the image encoder of a BEV config the weights of any image model, and say what was taken"
    parser = verb(verbs, "hand-over", _run, summary, examples)
    weights = "a .pth or .safetensors file, a folder as Hugging Face's, a shipped model's name"
    parser.add_argument("weights", metavar="WEIGHTS", help=weights)
    parser.add_argument("config", metavar="CONFIG", help="name of a shipped config, or a .py file: the model to start")
    parser.add_argument("--out", metavar="FILE", required=True, help="name it .safetensors")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights of a checkpoint that has both")
    parser.add_argument("--prefix", metavar="P", help="of the encoder's keys, where several or none are found")
    parser.add_argument(
        "--note",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="what the file does not say of its training (data, split, recipe, ...), for the header; repeatable",
    )


def _run(options: argparse.Namespace) -> int:
    from ..api import hand_over

    notes = notes_of(options.note)
    with writing(f"hand-over {options.weights}", [Path(options.out)]):
        report = hand_over(
            options.weights, options.config, options.out, prefix=options.prefix, use_ema=options.ema, notes=notes
        )
    print(report)
    print(f"wrote {options.out}; start with: drivestack train {options.config} --fine-tune {options.out}")
    return 0
