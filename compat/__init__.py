"""Adapters for users of other code bases: their names and signatures, our operators. The list is in docs/compat.md.

compat.dcnv3           InternImage: DCNv3, DCNv3_pytorch, DCNv3Function, dcnv3_core_pytorch
compat.dcnv4           DCNv4: DCNv4, DCNv4Function, FlashDeformAttn
compat.ms_deform_attn  mmcv, Deformable DETR, detrex: layers and functions
compat.hugging_face    transformers: the attention of a model that exists already
compat.mmcv_ops        mmcv: patch_mmcv() puts ours in the place of theirs
compat.mmcv_ext        the compiled module mmcv._ext, from compat.mmcv_boxes and compat.mmcv_operators
compat.openmmlab       for custom_imports of mmdet, mmsegmentation and mmdet3d (imports mmcv)
compat.mmdet3d         its info files, its nuScenes metric
compat.timm            timm: InternImage by name in its registry
compat.hugging_face_internimage   transformers: InternImage in its Auto classes
"""

from .dcnv3 import use_drivestack_dcnv3
from .hugging_face import use_drivestack_attention
from .mmcv_ops import patch_mmcv

__all__ = ["patch_mmcv", "use_drivestack_attention", "use_drivestack_dcnv3"]
