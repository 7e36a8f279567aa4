"""The one map from keys of released InternImage detectors (mmdet 2.28) to those of mmdet 3.3.

Source: state dicts of both, for all 23 released configs. Mask R-CNN and Cascade R-CNN have the same keys in both.
"""

from __future__ import annotations

import re

import torch

from ....core.weights.names import StateDict

DINO_RULES = (
    (r"^bbox_head\.transformer\.level_embeds$", "level_embed"),
    (r"^bbox_head\.transformer\.enc_output\.", "memory_trans_fc."),
    (r"^bbox_head\.transformer\.enc_output_norm\.", "memory_trans_norm."),
    (r"^bbox_head\.transformer\.query_embed\.", "query_embedding."),
    (r"^bbox_head\.transformer\.(encoder|decoder)\.", r"\1."),
    (r"^bbox_head\.label_embedding\.", "dn_query_generator.label_embedding."),
    (r"^(encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"^(decoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"^(decoder\.layers\.\d+)\.attentions\.1\.", r"\1.cross_attn."),
    (r"^((?:en|de)coder\.layers\.\d+)\.ffns\.0\.", r"\1.ffn."),
    (r"^decoder\.ref_point_head\.0\.", "decoder.ref_point_head.layers.0."),
    (r"^decoder\.ref_point_head\.2\.", "decoder.ref_point_head.layers.1."),
)
"""Regular expressions and what replaces them, applied in this order."""

COMPOSITE_RULE = (r"^neck\.0\.", "neck.")
"""The release keeps the neck of CB-InternImage detectors in a list of one."""

PART = re.compile(r"^(.*\.ffn)\.(fc1|fc2)_(\d+)\.(weight|bias)$")
SHARED_BIAS = re.compile(r"^(.*\.ffn)\.fc2_bias$")


def rename(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    """The key after all rules."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def adapt_detector(state: StateDict) -> tuple[StateDict, list[str]]:
    """State dict of a released detector under mmdet 3.3's keys, and a note on each kind of change.

    Keys of mmdet 3.3 stay as they are.
    """
    notes = []
    renamed = {rename(key, DINO_RULES): value for key, value in state.items()}
    if renamed.keys() != state.keys():
        notes.append("renamed DINO's keys to mmdet 3.3's")
    listed = {rename(key, (COMPOSITE_RULE,)): value for key, value in renamed.items()}
    if listed.keys() != renamed.keys():
        notes.append("took the neck out of its list")
    joined = join_split_ffn(listed)
    if joined.keys() != listed.keys():
        notes.append("joined the parts of split FFNs")
    return joined, notes


def join_split_ffn(state: StateDict) -> StateDict:
    """InternImage-G's DINO computes each FFN in four parts with one output bias; joined they are a plain FFN.

    fc1_i.weight [F/4, C] -> layers.0.0.weight [F, C], fc2_i.weight [C, F/4] -> layers.1.weight [C, F].
    """
    joined: StateDict = {}
    parts: dict[str, dict[int, torch.Tensor]] = {}
    for key, value in state.items():
        if found := PART.match(key):
            ffn, layer, number, kind = found.groups()
            name = f"{ffn}.layers.0.0.{kind}" if layer == "fc1" else f"{ffn}.layers.1.{kind}"
            parts.setdefault(name, {})[int(number)] = value
        elif found := SHARED_BIAS.match(key):
            joined[f"{found[1]}.layers.1.bias"] = value
        else:
            joined[key] = value
    for name, values in parts.items():
        if sorted(values) != list(range(len(values))):
            return state  # a part is missing: the loader names all of them
        axis = 1 if name.endswith("layers.1.weight") else 0
        joined[name] = torch.cat([values[i] for i in range(len(values))], dim=axis)
    return joined
