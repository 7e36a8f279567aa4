"""DCNv3 under the names and signatures of the InternImage repository (`ops_dcnv3`, both of its versions).

    from ops_dcnv3.modules import DCNv3              ->  from drivestack.compat.dcnv3 import DCNv3
    from ops_dcnv3.functions import DCNv3Function    ->  from drivestack.compat.dcnv3 import DCNv3Function

Version 1.0 (detection, segmentation) and 1.1 (classification) differ by one trailing argument, `remove_center`; here it
may always be left out. Source: InternImage, arXiv 2211.05778; the signatures are those of the repository
OpenGVLab/InternImage (MIT), the code is our own. Differences are listed in docs/compat.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..backbone.internimage.dcnv3_layer import DCNv3 as DCNv3Layer
from ..ops import dcnv3
from .windows import keyword_arguments


class DCNv3(DCNv3Layer):
    """Upstream's layer, [N, H, W, C] -> [N, Ho, Wo, C]: its constructor, attributes and state-dict names.

    `use_dcn_v4_op` chose another kernel for the same numbers upstream; it changes nothing here. For the
    other arguments see `drivestack.backbone.internimage.dcnv3_layer.DCNv3`; raises ValueError for those that do not
    fit.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        dw_kernel_size: int | None = None,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        center_feature_scale: bool = False,
        remove_center: bool = False,
        use_dcn_v4_op: bool = False,
    ) -> None:
        super().__init__(
            channels,
            kernel_size,
            dw_kernel_size,
            stride,
            pad,
            dilation,
            group,
            offset_scale,
            act_layer,
            norm_layer,
            center_feature_scale,
            bool(remove_center),
        )
        self.dw_kernel_size = self.dw_conv[0].kernel_size[0]
        self.group_channels = channels // group
        self.use_dcn_v4_op = use_dcn_v4_op


class DCNv3_pytorch(DCNv3):
    """Upstream's slow layer: the same numbers, so the same class."""


def dcnv3_core_pytorch(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    remove_center: bool | int = False,
) -> Tensor:
    """The operator by upstream's positional signature: 14 arguments (1.0) or 15 with `remove_center` (1.1).

    Args:
        input: [N, H, W, C] with C = group * group_channels.
        offset: [N, Ho, Wo, group * K * 2], (dx, dy) in pixels per tap. mask: [N, Ho, Wo, group * K], after the softmax.

    Returns:
        [N, Ho, Wo, C]. Differentiable in the three tensors, twice.

    Raises:
        ValueError: shapes that do not fit (upstream's kernel reads wrong memory instead). TypeError: dtypes.
    """
    sizes = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    options = keyword_arguments(input, sizes, group, group_channels, offset_scale, remove_center)
    return dcnv3(input, offset, mask, **options)


class DCNv3Function:
    """Replaces upstream's autograd function; the gradients come with the operator."""

    @staticmethod
    def apply(*args: Any) -> Tensor:
        """The arguments of `dcnv3_core_pytorch` with `im2col_step` after `offset_scale`: 15 (1.0) or 16 (1.1).

        `im2col_step` split the batch upstream and changed no number: it is ignored.
        """
        if len(args) not in (15, 16):
            raise TypeError(f"DCNv3Function.apply takes 15 arguments, or 16 with remove_center; got {len(args)}")
        return dcnv3_core_pytorch(*args[:14], *args[15:])


# The functions of the extension module `DCNv3`: sys.modules["DCNv3"] = drivestack.compat.dcnv3 replaces it.
dcnv3_forward = DCNv3Function.apply


def dcnv3_backward(input: Tensor, offset: Tensor, mask: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to (input, offset, mask): after them 11 window arguments, `grad_output`, `im2col_step` and, in 1.1,
    `remove_center`."""
    if len(args) not in (13, 14):
        raise TypeError(f"dcnv3_backward takes 16 arguments, or 17 with remove_center; got {len(args) + 3}")
    window, grad_output, remove_center = args[:11], args[11], args[13:]
    with torch.enable_grad():
        inputs = [t.detach().requires_grad_() for t in (input, offset, mask)]
        out = dcnv3_core_pytorch(*inputs, *window, *remove_center)
        to_input, to_offset, to_mask = torch.autograd.grad(out, inputs, grad_output)
        return to_input, to_offset, to_mask


def _name_of(module: nn.Module, names: dict[str, type[nn.Module]], what: str) -> str:
    found = [name for name, kind in names.items() if any(isinstance(m, kind) for m in module.modules())]
    if len(found) != 1:
        raise ValueError(f"the {what} of this DCNv3 layer is none of {', '.join(names)}: {module}")
    return found[0]


def _ours(theirs: nn.Module) -> DCNv3:
    norm = _name_of(theirs.dw_conv[1], {"LN": nn.LayerNorm, "BN": nn.modules.batchnorm._BatchNorm}, "norm")
    act = _name_of(theirs.dw_conv[-1], {"GELU": nn.GELU, "SiLU": nn.SiLU, "ReLU": nn.ReLU}, "activation")
    with torch.device("meta"):
        ours = DCNv3(
            theirs.channels,
            theirs.kernel_size,
            theirs.dw_conv[0].kernel_size[0],
            theirs.stride,
            theirs.pad,
            theirs.dilation,
            theirs.group,
            theirs.offset_scale,
            act,
            norm,
            bool(theirs.center_feature_scale),
            bool(getattr(theirs, "remove_center", False)),
        )
    ours.load_state_dict(theirs.state_dict(keep_vars=True), assign=True)  # the same parameters, for optimizers' sake
    return ours.train(theirs.training)


def use_drivestack_dcnv3(model: nn.Module) -> int:
    """Replace every upstream `DCNv3` or `DCNv3_pytorch` layer in `model` by ours, in place; returns how many.

    Finds the layers by class name, so also the copies in YOLO forks and the InternImage models of the Hugging Face hub
    (whose code never finds the CUDA operator, even where it is installed). Parameters are shared, not copied.

    Raises:
        ValueError: no such layer in the model, or one with an unknown norm or activation.
    """
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            named = type(child).__name__ in ("DCNv3", "DCNv3_pytorch")
            if named and hasattr(child, "dw_conv") and not isinstance(child, DCNv3Layer):
                setattr(parent, name, _ours(child))
                count += 1
    if not count:
        raise ValueError(f"no layer of class DCNv3 or DCNv3_pytorch in {type(model).__name__}")
    return count
