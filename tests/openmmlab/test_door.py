"""`custom_imports = dict(imports=["drivestack.compat.openmmlab"])`, and the file that `make openmmlab` writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from drivestack.backbone import InternImage, save_safetensors

TINY = dict(channels=16, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8), layer_scale=1.0)


@pytest.fixture
def build():
    from mmdet.registry import MODELS

    import drivestack.compat.openmmlab  # noqa: F401

    return lambda **arguments: MODELS.build(dict(type="InternImage", **TINY, **arguments))


def test_arguments_of_the_release(build, tmp_path: Path) -> None:
    pretrained = InternImage(**TINY)
    save_safetensors(pretrained.state_dict(), tmp_path / "encoder.safetensors")
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "encoder.safetensors"))
    model = build(core_op="DCNv3_pytorch", with_cp=True, init_cfg=init)
    assert all(level.activation_checkpointing for level in model.levels)
    assert not torch.equal(model.patch_embed.conv1.weight, pretrained.patch_embed.conv1.weight)
    model.init_weights()
    assert all(torch.equal(value, pretrained.state_dict()[name]) for name, value in model.state_dict().items())
    assert not build(core_op="DCNv3", init_cfg=None).levels[0].activation_checkpointing


@pytest.mark.parametrize(
    "wrong", [dict(core_op="DCNv4"), dict(init_cfg=dict(type="Kaiming")), dict(init_cfg=dict(type="Pretrained"))]
)
def test_other_arguments_are_refused(build, wrong: dict) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"{name}=.*(choose one of DCNv3|only dict\(type='Pretrained')"):
        build(**wrong)


def test_our_own_name_is_free_of_the_registered_one(build) -> None:
    from mmdet.registry import MODELS

    from drivestack.core.registries import MODELS as OURS

    assert type(MODELS.build(dict(type="drivestack.InternImage", **TINY))) is InternImage
    assert type(OURS.build(dict(type="InternImage", **TINY))) is InternImage


def test_mmdets_layers_are_made_with_our_attention(tmp_path: Path) -> None:
    """In a process of its own: what was imported before the door keeps mmcv's."""
    program = (
        "import drivestack.compat.openmmlab\n"
        "from mmdet.models.layers import DeformableDetrTransformerEncoderLayer as Layer\n"
        "print(type(Layer(dict(embed_dims=32), dict(embed_dims=32)).self_attn).__module__)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "drivestack.compat.ms_deform_attn"


def test_a_program_that_knows_nothing_of_drivestack(tmp_path: Path) -> None:
    """Needs the file that `make openmmlab` writes: mmseg and mmdet3d import mmcv.ops before a config is read."""
    program = (
        "import mmdet3d.utils, mmseg.models, torch\n"
        "from mmcv.ops import nms\n"
        "print(nms(torch.tensor([[0., 0, 9, 9], [0, 0, 9, 8]]), torch.tensor([0.5, 0.9]), 0.5)[1].tolist())\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[1]"
