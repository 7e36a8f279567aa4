"""Group attention and the decoder agree with upstream."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from drivestack.bev.boxes.decoder import GroupSelfAttention, ObjectDecoder, inverse_sigmoid


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("name", "groups"), [("group_mha_train", 3), ("group_mha_eval", 1)])
def test_group_attention_agrees_with_upstream(case, name, groups):
    ref = case(name)
    module = GroupSelfAttention(32, 4, dropout=0.0).train(groups > 1)
    module.load_state_dict(ref.weights("group_mha_train"))
    query = ref["in.query"].requires_grad_()
    output = module(query.transpose(0, 1), ref["in.query_pos"].transpose(0, 1), groups).transpose(0, 1)
    close(output, ref["out.output"])
    ref.check_gradients(output, {"query": query}, module)


def test_groups_do_not_see_one_another(case):
    ref = case("group_mha_train")
    module = GroupSelfAttention(32, 4).eval()
    module.load_state_dict(ref.weights("group_mha_train"))
    query, query_pos = ref["in.query"].transpose(0, 1), ref["in.query_pos"].transpose(0, 1)
    together = module(query, query_pos, groups=3)
    for g in range(3):
        part = slice(8 * g, 8 * g + 8)
        close(together[:, part], module(query[:, part], query_pos[:, part]), 1e-6)
    with pytest.raises(ValueError, match="24 object queries cannot be split into 5"):
        module(query, query_pos, groups=5)


def test_nobody_attends_to_padding(case):
    ref = case("group_mha_train")
    module = GroupSelfAttention(32, 4).eval()
    module.load_state_dict(ref.weights("group_mha_train"))
    query, query_pos = ref["in.query"].transpose(0, 1), ref["in.query_pos"].transpose(0, 1)
    valid = torch.arange(8).expand(2, 8) < torch.tensor([[8], [5]])  # sample 1: three of each group's eight are padding
    padded = module(query, query_pos, 3, valid)
    kept = torch.cat([torch.arange(8 * g, 8 * g + 5) for g in range(3)])
    close(padded[1:, kept], module(query[1:, kept], query_pos[1:, kept], 3), 1e-6)
    close(padded[:1], module(query[:1], query_pos[:1], 3), 1e-6)


def branches(ref) -> nn.ModuleList:
    made = nn.ModuleList(
        nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)) for _ in range(3)
    )
    made.load_state_dict(ref.weights("decoder_group1_eval", "reg_branches."))
    return made


@pytest.mark.parametrize("name", ["decoder_group1_eval", "decoder_group3_eval"])
def test_decoder_agrees_with_upstream(case, name):
    ref = case(name)
    decoder = ObjectDecoder(3, embed_dims=32, num_heads=4, ffn_dims=64).eval()
    decoder.load_state_dict(ref.weights("decoder_group1_eval", "decoder."))
    query, value = ref["in.query"].requires_grad_(), ref["in.value"].requires_grad_()
    states, references = decoder(
        query.transpose(0, 1),
        ref["in.query_pos"].transpose(0, 1),
        ref["in.reference_points"],
        value.transpose(0, 1),
        (10, 8),
        branches(ref),
    )
    close(states.transpose(1, 2), ref["out.inter_states"])
    close(references[1:], ref["out.inter_references"])
    close(references[0], ref["in.reference_points"], 0)
    ref.check_gradients(states[-1].transpose(0, 1), {"query": query, "value": value}, decoder, "decoder.")


def test_without_branches_the_points_stay(case):
    decoder = ObjectDecoder(2, embed_dims=32, num_heads=4, ffn_dims=64).eval()
    points = torch.rand(1, 5, 3)
    _, references = decoder(torch.zeros(1, 5, 32), torch.zeros(1, 5, 32), points, torch.zeros(1, 12, 32), (3, 4))
    assert torch.equal(references, points.expand(3, 1, 5, 3))


def test_inverse_sigmoid_is_finite_at_both_ends():
    x = torch.tensor([0.0, 0.3, 1.0])
    assert inverse_sigmoid(x).isfinite().all()
    close(inverse_sigmoid(x).sigmoid(), x, 2e-5)
