"""One call of an operator, arguments checked: autocast, the choice between kernel and twin, the kernel's dtypes."""

import torch
from torch import Tensor

from .autograd import call
from .backend import kernel_serves
from .registration import TWINS, autocast_inputs

# The kernels take these two tensors in value's dtype, or both in float32 ...
_PAIRED = {"dcnv3": (1, 2), "ms_deform_attn_fused": (3, 4), "spatial_cross_attention": (4, 5)}
# ... and these never in half precision.
_WIDE = {"ms_deform_attn": (2, 3), "ms_deform_attn_fused": (2,), "spatial_cross_attention": (2,)}


def run(name: str, backend: str | None, *inputs) -> Tensor:
    """Operator `name` with the inputs of its schema, by kernel or twin.

    Raises:
        BackendUnavailableError, ValueError: see `drivestack.ops.dispatch.backend.kernel_serves`.
    """
    device_type = inputs[0].device.type
    inputs = autocast_inputs(name, inputs, device_type)
    if not kernel_serves(name, backend, device_type):
        return TWINS[name](*inputs)
    dtype = inputs[0].dtype
    widened = ()
    if name in _PAIRED:
        first, second = _PAIRED[name]
        if not inputs[first].dtype == inputs[second].dtype == dtype:
            widened += _PAIRED[name]
    if dtype != torch.float64:
        widened += tuple(i for i in _WIDE.get(name, ()) if inputs[i].dtype != torch.float32)
    if widened:
        inputs = [x.float() if i in widened else x for i, x in enumerate(inputs)]
    return call(name, *inputs)
