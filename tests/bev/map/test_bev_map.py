"""BEV map and decoder agree with upstream over three frames; keys and initialisation are the published ones."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from drivestack.bev.boxes.head import BoxHead
from drivestack.bev.map.bev_map import BevMap
from drivestack.bev.published.recurrent_map import RecurrentBevMap
from drivestack.core.errors import ConfigError
from drivestack.core.registries import MODELS
from drivestack.core.weights.published_keys import published_name
from support.maps import tokens_of
from support.published_head import PublishedHead

IMAGE = (96, 160)
TINY = {
    "bev_size": (10, 10),
    "embed_dims": 32,
    "num_heads": 4,
    "num_cams": 3,
    "num_levels": 2,
    "num_layers": 2,
    "ffn_dims": 64,
    "frames": (-2, -1, 0),
    "fusion_channels": 48,
}
TINY_HEAD = {"num_query": 12, "embed_dims": 32, "num_layers": 2, "num_heads": 4, "ffn_dims": 64}


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


class Given(nn.Module):
    """A positional encoding that is what was recorded."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> Tensor:
        return self.value


class Upstream:
    """The recorded three-frame case: the model, its inputs, and a run with some frames missing."""

    frames = ("tm2", "tm1", "t0")

    def __init__(self, ref) -> None:
        self.ref = ref
        self.model = PublishedHead(BevMap(**TINY), BoxHead(**TINY_HEAD)).eval()
        self.bev_map, self.head = self.model.bev_map, self.model.head
        recorded = ref.weights("transformer_v2_frames3_noaug")
        missing, unexpected = self.model.load_state_dict(recorded, strict=False)
        # of what the transformer does not hold, the run was given values or did without
        apart = ("bev_embedding.", "positional_encoding.", "query_embedding.", "cls_branches.", "code_weights")
        assert not unexpected and all(published_name(self.model, key).startswith(apart) for key in missing)
        with torch.no_grad():
            self.bev_map.bev_embedding.weight.copy_(ref["in.bev_queries"])
        self.bev_map.positional_encoding = Given(ref["in.bev_pos"].flatten(2).transpose(1, 2))
        self.feats = {t: [ref[f"in.feats_{t}.{level}"] for level in range(2)] for t in self.frames}

    def encode(self, *frames: str) -> Tensor:
        """The frames as one batch: [len(frames), C, 10, 10]."""
        return self.bev_map.encode_frame(
            [torch.cat([self.feats[t][level] for t in frames]) for level in range(2)],
            torch.stack([self.ref[f"in.lidar2img_{t}"] for t in frames]),  # the past ones hold the ego motion
            torch.tensor(IMAGE).expand(len(frames), 3, 2),
            IMAGE,
        )

    def run(self, *present: str) -> tuple[Tensor, Tensor, Tensor]:
        """Fused BEV tokens, states and references where only the given frames exist."""
        bevs = [self.encode(t) if t in present else None for t in self.frames]
        bev = tokens_of(self.bev_map.fuse(bevs, torch.tensor([[t in present for t in self.frames]])))
        query_pos, query = self.ref["in.object_query_embed"][None].chunk(2, 2)
        points = self.head.initial_references(query_pos)
        return bev, *self.head.decoder(query, query_pos, points, bev, (10, 10), self.head.reg_branches)


@pytest.fixture
def upstream(case) -> Upstream:
    return Upstream(case("transformer_v2_frames3_noaug"))


@pytest.mark.parametrize("t", Upstream.frames)
def test_every_frame_is_encoded_as_upstream(upstream, t):
    close(tokens_of(upstream.encode(t)), upstream.ref[f"out.bev_{t}"])


def test_frames_fold_into_the_batch(upstream):
    together = tokens_of(upstream.encode(*upstream.frames))
    close(together, torch.cat([upstream.ref[f"out.bev_{t}"] for t in upstream.frames]))


@pytest.mark.parametrize(
    ("name", "present"),
    [
        ("full", ("tm2", "tm1", "t0")),
        ("miss_oldest", ("tm1", "t0")),
        ("miss_middle", ("tm2", "t0")),
        ("miss_all", ("t0",)),
    ],
)
def test_fused_and_decoded_as_upstream(upstream, name, present):
    bev, states, references = upstream.run(*present)
    expected = upstream.ref
    close(bev.transpose(0, 1), expected[f"out.{name}.bev_embed"])
    close(states.transpose(1, 2), expected[f"out.{name}.inter_states"])
    close(references[0], expected[f"out.{name}.init_reference"])
    close(references[1:], expected[f"out.{name}.inter_references"])


def test_gradients_agree_with_upstream(upstream):
    leaves = {f"f0_{level}": f.requires_grad_() for level, f in enumerate(upstream.feats["t0"])}
    _, states, _ = upstream.run("t0")
    upstream.ref.check_gradients(states[-1].transpose(0, 1), leaves, upstream.model, below="transformer.")


def test_autocast_stays_near(upstream):
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        bev, states, references = upstream.run("tm2", "tm1", "t0")
    exact = upstream.ref
    assert references.dtype == torch.float32
    close(references[0], exact["out.full.init_reference"])
    assert (bev.float().transpose(0, 1) - exact["out.full.bev_embed"]).abs().mean() < 0.03
    assert (states.float().transpose(1, 2) - exact["out.full.inter_states"]).abs().mean() < 0.03


def test_samples_of_a_batch_may_miss_different_frames(upstream):
    maps = [upstream.encode(t) for t in upstream.frames]
    valid = torch.tensor([[True, True, True], [False, True, True], [False, False, True]])
    fused = tokens_of(upstream.bev_map.fuse([m.expand(3, -1, -1, -1) for m in maps], valid))
    for b, name in enumerate(["full", "miss_oldest", "miss_all"]):
        close(fused[b], upstream.ref[f"out.{name}.bev_embed"][:, 0])


def test_camera_order_does_not_matter(upstream):
    """Images, matrices and embedding rows permuted together give the same map."""
    straight = upstream.encode("t0")
    order = [1, 2, 0]
    shuffled = upstream.bev_map.encode_frame(
        [f[:, order] for f in upstream.feats["t0"]],
        upstream.ref["in.lidar2img_t0"][None, order],
        torch.tensor(IMAGE).expand(1, 3, 2),
        IMAGE,
        camera_ids=order,
    )
    close(shuffled, straight)


def test_too_many_cameras_are_named():
    model = BevMap(**TINY)
    with pytest.raises(ConfigError, match="4 cameras, but the model has embeddings for 3"):
        model.image_tokens([torch.zeros(1, 4, 32, 2, 2)])


@pytest.mark.parametrize("frames", [(-1,), (0, -1), (-1, -1, 0)])
def test_frames_must_ascend_and_hold_the_current_one(frames):
    with pytest.raises(ValueError, match="ascending time offsets with 0"):
        BevMap(**TINY | {"frames": frames})


def test_fuse_wants_all_frames(upstream):
    with pytest.raises(ValueError, match="1 BEV maps for the 3 frames"):
        upstream.bev_map.fuse([upstream.encode("t0")], torch.ones(1, 1, dtype=torch.bool))


def test_rectangular_grid_trains_in_groups_with_augmentation():
    """Every parameter gets a gradient, batch of two, rectangular range, BEV augmentation, two groups."""
    torch.manual_seed(0)
    sizes = {"pc_range": (-20, -10, -3, 20, 30, 2), "bev_size": (6, 9), "frames": (0,), "checkpoint_encoder": True}
    model = MODELS.build({"type": "BevMap", **TINY, **sizes})
    matrix = torch.eye(4).repeat(2, 3, 1, 1)
    matrix[..., :3, :3] = torch.tensor([[80.0, 60, 0], [48, 0, -60], [1, 0, 0]])
    bev = model.encode_frame(
        [torch.randn(2, 3, 32, 12, 20), torch.randn(2, 3, 32, 6, 10)],
        matrix,
        torch.tensor(IMAGE).expand(2, 3, 2),
        IMAGE,
        bda=torch.diag(torch.tensor([-1.0, 1, 1])).expand(2, 3, 3),
    )
    assert bev.shape == (2, 32, 6, 9)
    fused = model.fuse([bev], torch.ones(2, 1, dtype=torch.bool))
    head = BoxHead(**TINY_HEAD | {"num_query": 5, "num_groups": 2, "pc_range": sizes["pc_range"]})
    query, query_pos = torch.randn(2, 10, 32), torch.randn(2, 10, 32)
    points = head.initial_references(query_pos)
    states, references = head.decoder(query, query_pos, points, tokens_of(fused), (6, 9), groups=2)
    assert states.shape == (2, 2, 10, 32) and references.shape == (3, 2, 10, 3)
    outs = head.decode(fused)
    assert outs.cls_logits.shape == (2, 2, 10, 10) and outs.groups == 2
    (states.sum() * states.mean() + references.sum() + outs.cls_logits.sum() + outs.box_codes.square().sum()).backward()
    missing = [
        name for part in (model, head) for name, p in part.named_parameters() if p.requires_grad and p.grad is None
    ]
    assert not missing


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("bevformerv2-r50-t8-24ep", lambda: BevMap(frames=range(-7, 1))),
        ("bevformer_base", RecurrentBevMap),
    ],
)
def test_keys_and_initial_statistics_are_the_published(reference_dir, name, build):
    """Statistics of upstream's init_weights(); docs/quirks.md#embeddings-initialised-twice."""
    published = json.loads((reference_dir / "bev" / "init_stats_transformer.json").read_text())[name]
    torch.manual_seed(0)
    model = PublishedHead(build(), BoxHead())
    state = {
        key.removeprefix("transformer."): value
        for key, value in model.state_dict().items()
        if key.startswith("transformer.") and not key.endswith("num_batches_tracked")
    }
    assert sorted(state) == sorted(k for k in published if not k.endswith("num_batches_tracked"))
    for key, tensor in state.items():
        shape, mean, std, low, high = published[key]
        assert list(tensor.shape) == shape, key
        bound = 6 * (std + 1e-7) / tensor.numel() ** 0.5 + 1e-6  # both are random draws
        assert abs(tensor.mean() - mean) < 1.5 * bound, key
        assert abs(tensor.std(correction=0) - std) < bound + 0.01 * std, key
        assert low - 0.3 * std - 1e-6 <= tensor.min() or std > 0.9, key  # N(0, 1) has no bounds
        assert tensor.max() <= high + 0.3 * std + 1e-6 or std > 0.9, key
