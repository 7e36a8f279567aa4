"""What configs of mmdet, mmsegmentation and mmdet3d name in their custom_imports:

    custom_imports = dict(imports=["drivestack.compat.openmmlab"], allow_failed_imports=False)

Importing it puts our deformable attention and, where no compiled operators are, our operators under `mmcv.ops`
(`patch_mmcv`), and registers InternImage under its upstream name with the arguments that upstream's configs have.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from mmengine.registry import MODELS

from ..backbone import InternImage
from .mmcv_ops import patch_mmcv

_OPERATORS = ("DCNv3", "DCNv3_pytorch")


class ReleasedInternImage(InternImage):
    """`InternImage` as configs of the release build it.

    Args:
        core_op: "DCNv3" or "DCNv3_pytorch", for the same numbers: drivestack.ops chooses the kernel.
        with_cp: upstream's name of ``activation_checkpointing``.
        init_cfg: None, or ``dict(type="Pretrained", checkpoint=FILE)``; only ``type``, ``checkpoint`` and ``prefix``
            None may be given: what a checkpoint's keys are called is found out by loading.
        arguments: those of `InternImage`.

    Raises:
        ValueError: another operator or initialisation.
    """

    def __init__(
        self,
        *,
        core_op: str = "DCNv3",
        with_cp: bool = False,
        init_cfg: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        if core_op not in _OPERATORS:
            raise ValueError(f"core_op={core_op!r}: choose one of {', '.join(_OPERATORS)}")
        if init_cfg is not None:
            known = {"type": "Pretrained", "checkpoint": init_cfg.get("checkpoint"), "prefix": None}
            if any(known.get(name, object()) != value for name, value in init_cfg.items()) or not known["checkpoint"]:
                raise ValueError(f"init_cfg={dict(init_cfg)}: only dict(type='Pretrained', checkpoint=FILE) is known")
            arguments.setdefault("pretrained", known["checkpoint"])
        arguments.setdefault("activation_checkpointing", with_cp)
        super().__init__(**arguments)


if importlib.util.find_spec("mmcv") is not None:  # else nothing of theirs runs
    patch_mmcv()
MODELS.register_module(name="InternImage", module=ReleasedInternImage, force=True)
