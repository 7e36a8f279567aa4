"""Operators with a slow, obvious twin and a fast kernel: DCNv3, multi-scale deformable attention, softmax of taps."""

from .backend import BackendFallbackWarning, BackendUnavailableError, backend_report
from .dcnv3 import dcnv3
from .ms_deform_attn import ms_deform_attn
from .softmax_rows import softmax_rows

__all__ = [
    "BackendFallbackWarning",
    "BackendUnavailableError",
    "backend_report",
    "dcnv3",
    "ms_deform_attn",
    "softmax_rows",
]
