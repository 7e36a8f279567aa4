"""The published heads against numbers of the released code: maps, outputs, losses, assignments, gradients."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from drivestack.lane_topology.curves import fit_controls, sample_curves
from drivestack.lane_topology.matching import UNMATCHED
from drivestack.lane_topology.published import losses
from drivestack.lane_topology.published.bev_constructor import BevConstructor
from drivestack.lane_topology.published.centreline_head import CentrelineHead
from drivestack.lane_topology.published.element_head import ElementHead
from drivestack.lane_topology.published.relationship import RelationshipHead
from support.maps import map_of, tokens_of

PADDED = (64, 96)
# The released code divides projections by the size before padding, although the maps cover the padded image: the same
# where nothing is padded. Here the caller says what it divides by; the models pass the padded size.
DIVISOR = (60, 90)
IMAGE_SIZE = torch.tensor([[60, 90], [60, 90]])
CLOSE = dict(rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def numbers(reference_dir: Path) -> dict:
    return json.loads((reference_dir / "lane_topology" / "lane_topology_heads.json").read_text())


@pytest.fixture(scope="module")
def arrays(reference_dir: Path) -> dict[str, Tensor]:
    return load_file(reference_dir / "lane_topology" / "lane_topology_heads.safetensors")


class Heads(nn.Module):
    """The tiny upstream model without its image encoder."""

    def __init__(self, refine: bool = False) -> None:
        super().__init__()
        size = dict(embed_dims=32, ffn_dims=64, dropout=0.0)
        self.bev_constructor = BevConstructor(
            bev_size=(5, 10), num_cams=3, num_layers=2, use_can_bus=True, rotate_center=(2, 5), **size
        )
        self.pts_bbox_head = CentrelineHead(num_query=12, num_layers=3, with_box_refine=refine, **size)
        self.bbox_head = ElementHead(num_query=9, num_layers=(2, 3), **size)
        self.lclc_head = RelationshipHead(32)
        self.lcte_head = RelationshipHead(32)

    def outputs(self, inputs: dict[str, Tensor]) -> tuple:
        levels = [inputs[f"feat{i}"] for i in range(4)]
        sizes = IMAGE_SIZE[:, None].expand(2, 3, 2)
        matrices = inputs["lidar2img"].expand(2, 3, 4, 4)
        bev = self.bev_constructor(levels, matrices, sizes, DIVISOR, inputs["can_bus"])
        lanes = self.pts_bbox_head(bev)
        elements = self.bbox_head([level[:, 0] for level in levels], IMAGE_SIZE, PADDED)
        edges = self.lclc_head(lanes.states[-1], lanes.states[-1])
        governs = self.lcte_head(lanes.states[-1], elements.states[-1])
        return bev, lanes, elements, edges, governs


def group(arrays: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def heads(arrays) -> Heads:
    model = Heads().eval()
    model.load_state_dict(group(arrays, "weights/"))
    return model


def labels(arrays, lanes=(0, 1), elements=(0, 1)) -> dict[str, list[Tensor]]:
    """Ground truth of both samples; only those listed keep their lanes, their elements."""
    i = group(arrays, "inputs/")
    own = {name: [i[f"gt_{name}{b}"] for b in (0, 1)] for name in ("lc", "lclc", "lcte", "te", "te_labels")}
    for b in (0, 1):
        if b not in lanes:
            own["lc"][b], own["lclc"][b], own["lcte"][b] = own["lc"][b][:0], own["lclc"][b][:0, :0], own["lcte"][b][:0]
        if b not in elements:
            own["te"][b], own["te_labels"][b], own["lcte"][b] = (
                own["te"][b][:0],
                own["te_labels"][b][:0],
                own["lcte"][b][:, :0],
            )
    return own


def all_losses(model: Heads, outs: tuple, own: dict[str, list[Tensor]]) -> tuple[dict[str, Tensor], list, list]:
    _, lanes, elements, edges, governs = outs
    lane_terms, lane_of = model.pts_bbox_head.loss(lanes, own["lc"])
    element_terms, element_of = model.bbox_head.loss(elements, own["te"], own["te_labels"], IMAGE_SIZE)
    edge = losses.edge_loss(edges, losses.edge_targets(own["lclc"], lane_of, lane_of, edges.shape[1:])) * 5
    govern = losses.edge_loss(governs, losses.edge_targets(own["lcte"], lane_of, element_of, governs.shape[1:])) * 5
    present = float(any(len(boxes) for boxes in own["te"]))
    named = {f"lane_head.{k}": v for k, v in lane_terms.items()} | {"lclc_head.loss_rel": edge}
    named |= {f"bbox_head.{k}": v * present for k, v in element_terms.items()}
    return named | {"lcte_head.loss_rel": govern * present}, lane_of, element_of


def check(actual: dict[str, Tensor], expected: dict[str, float]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        torch.testing.assert_close(value.double(), torch.tensor(expected[name]).double(), **CLOSE, msg=name)


@torch.no_grad()
def test_bev_map_with_and_without_history(heads, arrays):
    i = group(arrays, "inputs/")
    levels = [i[f"feat{n}"] for n in range(4)]
    views = (i["lidar2img"].expand(2, 3, 4, 4), IMAGE_SIZE[:, None].expand(2, 3, 2), DIVISOR, i["can_bus"])
    torch.testing.assert_close(tokens_of(heads.bev_constructor(levels, *views)), arrays["out/bev"], **CLOSE)
    with_previous = heads.bev_constructor(levels, *views, previous=map_of(i["prev_bev"], 5, 10))
    torch.testing.assert_close(tokens_of(with_previous), arrays["out/bev_with_prev"], **CLOSE)


@torch.no_grad()
def test_lanes_elements_and_edges(heads, arrays, numbers):
    _, lanes, elements, edges, governs = heads.outputs(group(arrays, "inputs/"))
    out = group(arrays, "out/")
    for name, value in {
        "lane/all_cls_scores": lanes.logits,
        "lane/all_lanes_preds": lanes.codes,
        "lane/history_states": lanes.states,
        "te/all_cls_scores": elements.logits,
        "te/all_bbox_preds": elements.boxes,
        "te/history_states": elements.states,
        "lclc_logits": edges[..., None],
        "lcte_logits": governs[..., None],
    }.items():
        scale = out[name].abs().max().clamp(min=1)
        torch.testing.assert_close(value / scale, out[name] / scale, **CLOSE, msg=name)
    for b in (0, 1):
        torch.testing.assert_close(lanes.codes[-1, b], out[f"lane/lanes{b}"], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(lanes.logits[-1, b].sigmoid(), out[f"lane/scores{b}"], **CLOSE)
        torch.testing.assert_close(edges[b].sigmoid(), out[f"lclc_prob{b}"], **CLOSE)
        torch.testing.assert_close(governs[b].sigmoid(), out[f"lcte_prob{b}"], **CLOSE)
    scale = torch.tensor(numbers["config"]["scale_factor"])
    for name, factors in {
        "not_rescaled": None,
        "rescaled_4vec": scale.expand(2, 4),
        "rescaled_forkbug": scale[0].expand(2, 4),
    }.items():
        for b, (boxes, scores, attributes) in enumerate(heads.bbox_head.predict(elements, IMAGE_SIZE, factors)):
            torch.testing.assert_close(boxes, out[f"te/{name}_boxes{b}"][:, :4], rtol=1e-5, atol=1e-4)
            assert attributes.tolist() == out[f"te/{name}_boxes{b}"][:, 4].tolist()
            if name != "rescaled_forkbug":
                torch.testing.assert_close(scores, out[f"te/{name}_scores{b}"], **CLOSE)


def test_losses_assignments_and_gradients(heads, arrays, numbers):
    inputs = group(arrays, "inputs/")
    heads.zero_grad()
    terms, lane_of, element_of = all_losses(heads, heads.outputs(inputs), labels(arrays))
    check(terms, numbers["losses"])
    for found, key in ((lane_of, "lane_assign_last"), (element_of, "te_assign_last")):
        for to, expected in zip(found, numbers[key]):
            positive = (to != UNMATCHED).nonzero().flatten()
            assert positive.tolist() == expected["pos_inds"] and to[positive].tolist() == expected["gt"]
    sum(terms.values()).backward()
    gradients = dict(heads.named_parameters())
    for name, norm in numbers["grad_norms"].items():
        torch.testing.assert_close(gradients[name].grad.norm(), torch.tensor(norm), rtol=1e-4, atol=1e-6, msg=name)


@torch.no_grad()
def test_losses_of_batches_without_elements_or_lanes(heads, arrays, numbers):
    outs = heads.outputs(group(arrays, "inputs/"))
    check(all_losses(heads, outs, labels(arrays, elements=()))[0], numbers["losses_no_te"])
    check(all_losses(heads, outs, labels(arrays, lanes=(0,)))[0], numbers["losses_sample1_no_lanes"])


@torch.no_grad()
def test_refined_lanes(arrays, numbers):
    model = Heads(refine=True).eval()
    missing, unexpected = model.load_state_dict(group(arrays, "refine/weights/"), strict=False)
    assert not unexpected and not [k for k in missing if k.startswith("pts_bbox_head")]
    lanes = model.pts_bbox_head(map_of(arrays["refine/out/bev"], 5, 10))
    out = group(arrays, "refine/out/lane/")
    torch.testing.assert_close(lanes.logits, out["all_cls_scores"], **CLOSE)
    torch.testing.assert_close(lanes.states, out["history_states"], **CLOSE)
    torch.testing.assert_close(lanes.codes, out["all_lanes_preds"], rtol=1e-5, atol=2e-4)
    terms, _ = model.pts_bbox_head.loss(lanes, labels(arrays)["lc"])
    expected = {k: v for k, v in numbers["refine/losses"].items() if k.startswith("lane_head.")}
    check({f"lane_head.{k}": v for k, v in terms.items()}, expected)


def test_bezier_codes(arrays):
    for i in range(4):
        points = arrays[f"bezier/points{i}"]
        torch.testing.assert_close(
            fit_controls(points).flatten(), arrays[f"bezier/control{i}"][0], rtol=1e-5, atol=1e-4
        )
    ends = torch.stack([torch.arange(5.0), torch.arange(5.0) ** 2, torch.zeros(5)], -1)
    torch.testing.assert_close(sample_curves(ends)[[0, -1]], ends[[0, -1]])
