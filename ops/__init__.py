"""Operators, each with kernels and a slow, simple reference implementation: DCNv3, DCNv4, deformable attention."""

from .dcnv3 import dcnv3, dcnv4, packed_width
from .dispatch.backend import BackendFallbackWarning, BackendUnavailableError, backend_report
from .ms_deform_attn import ms_deform_attn, ms_deform_attn_fused
from .spatial_cross_attention import spatial_cross_attention

__all__ = [
    "BackendFallbackWarning",
    "BackendUnavailableError",
    "backend_report",
    "dcnv3",
    "dcnv4",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "packed_width",
    "spatial_cross_attention",
]
