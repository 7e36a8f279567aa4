"""MMEngine's registries in a scope of our own."""

from __future__ import annotations

import subprocess
import sys

import mmengine
from torch import nn

import drivestack.backbone.fpn
from drivestack.core.registries import MODELS


def test_names_that_others_took_do_not_matter() -> None:
    program = """
from mmengine.registry import DATASETS, HOOKS, MODELS
taken = {MODELS: ["FPN", "ResNet", "InternImage", "BEVFormerV2"], DATASETS: ["ClipDataset"], HOOKS: ["KeepCheckpoints"]}
for registry, names in taken.items():
    for name in names:
        registry.register_module(name=name, module=type(name, (), {}))
import drivestack.engine.train, drivestack.bev.bevformer_v2, drivestack.bev.boxes.head
@MODELS.register_module()
class BoxHead: pass
print(MODELS.get("BoxHead").__module__, MODELS.get("drivestack.BoxHead").__module__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["__main__", "drivestack.bev.boxes.head"], done.stderr


def test_ours_first_then_mmengines_in_any_default_scope() -> None:
    ours = drivestack.backbone.fpn.FPN
    fpn = dict(type="FPN", in_channels=[4], out_channels=4, num_outs=1)
    assert MODELS.get("FPN") is ours
    assert mmengine.MODELS.get("drivestack.FPN") is ours
    assert "FPN" not in mmengine.MODELS.module_dict
    assert isinstance(MODELS.build(dict(type="BaseDataPreprocessor")), nn.Module)
    with mmengine.registry.DefaultScope.overwrite_default_scope("mmengine"):
        assert isinstance(MODELS.build(dict(fpn)), ours)
    assert isinstance(mmengine.MODELS.build(fpn | {"type": "drivestack.FPN"}), ours)
