"""The one map from keys of released InternImage segmentors (mmseg 0.27) to those of mmseg 1.2.

Source: state dicts of both, for all 28 released configs. UperNet and SegFormer have the same keys in both.
"""

from __future__ import annotations

from ....core.weights.names import StateDict
from ..detection.keys import rename

MASK2FORMER_RULES = (
    (r"^(decode_head\.pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"^(decode_head\.\S+\.layers\.\d+)\.ffns\.0\.", r"\1.ffn."),
    (r"^(decode_head\.transformer_decoder\.layers\.\d+)\.attentions\.0\.", r"\1.cross_attn."),
    (r"^(decode_head\.transformer_decoder\.layers\.\d+)\.attentions\.1\.", r"\1.self_attn."),
)
"""Regular expressions and what replaces them, applied in this order."""


def adapt_segmentor(state: StateDict) -> tuple[StateDict, list[str]]:
    """State dict of a released segmentor under mmseg 1.2's keys, and a note on each kind of change.

    Keys of mmseg 1.2 stay as they are.
    """
    renamed = {rename(key, MASK2FORMER_RULES): value for key, value in state.items()}
    changed = renamed.keys() != state.keys()
    return renamed, ["renamed Mask2Former's keys to mmseg 1.2's"] if changed else []
