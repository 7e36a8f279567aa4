"""Assignment of objects to feature locations, against upstream and by hand."""

import torch

from drivestack.bev.perspective.targets import SIZES_OF_INTEREST, assign_locations, feature_locations
from drivestack.core.labels import MonoTargets


def labels_of(boxes, classes) -> MonoTargets:
    m = len(boxes)
    return MonoTargets(
        torch.tensor(boxes, dtype=torch.float32).reshape(m, 4),
        torch.tensor(classes, dtype=torch.long),
        torch.zeros(m, 10),
        torch.zeros(m, dtype=torch.long),
        torch.zeros(m),
    )


def test_targets_agree_with_upstream(case):
    ref = case("dd3d_head_train")
    shapes, strides = ((16, 32), (8, 16), (4, 8), (2, 4), (1, 2)), (8, 16, 32, 64, 128)
    sizes = [h * w for h, w in shapes]
    targets = [labels_of(ref[f"in.gt{i}.gt_boxes"].tolist(), ref[f"in.gt{i}.gt_classes"].tolist()) for i in range(2)]
    locations = feature_locations(shapes, strides, torch.device("cpu"))
    assigned = assign_locations(targets, locations, sizes, strides, SIZES_OF_INTEREST)
    # upstream's rows run level by level over both images
    labels = torch.cat([part.flatten() for part in assigned.labels.split(sizes, 1)])
    assert torch.equal(torch.where(labels < 0, 10, labels), ref["out.targets.labels"])
    row = torch.arange(labels.numel())
    index = torch.cat([part.reshape(-1) for part in assigned_rows(assigned).split(sizes, 1)])
    assert torch.equal(row[index >= 0], ref["out.targets.pos_inds"])
    positives = index[index >= 0]
    assert torch.equal(assigned.object[positives], ref["out.targets.target_inds"][index >= 0])


def assigned_rows(assigned) -> torch.Tensor:
    """[I, P]: which positive a location is, -1 for none."""
    rows = torch.full_like(assigned.labels, -1)
    rows[assigned.image, assigned.location] = torch.arange(len(assigned.image))
    return rows


def assign(targets, strides=(8, 16), shapes=((8, 8), (4, 4)), sizes=((-1, 20), (20, 1e8))):
    locations = feature_locations(shapes, strides, torch.device("cpu"))
    return locations, assign_locations(targets, locations, [h * w for h, w in shapes], strides, sizes)


def test_locations_have_no_half_stride():
    locations = feature_locations(((2, 3),), (8,), torch.device("cpu"))
    assert locations.tolist() == [[0, 0], [8, 0], [16, 0], [0, 8], [8, 8], [16, 8]]


def test_smaller_object_wins_and_size_picks_the_level():
    small, large = [13.0, 13, 19, 19], [4.0, 4, 60, 60]
    locations, assigned = assign([labels_of([large, small], [5, 7])])
    rows = assigned_rows(assigned)[0]
    at = {tuple(p): int(i) for p, i in zip(locations[:64].long().tolist(), rows[:64])}
    assert assigned.object[at[16, 16]] == 1, "both hold the point, the smaller one takes it"
    assert at[40, 40] == -1, "the large object is out of range on the fine level"
    coarse = assigned.object[rows[64:][rows[64:] >= 0]]
    assert (coarse == 0).all() and len(coarse) > 0
    assert (assigned.labels[0, 64:][rows[64:] >= 0] == 5).all()


def test_border_points_do_not_count_and_centerness_falls_to_the_edge():
    _, assigned = assign([labels_of([[8.0, 8, 24, 24]], [0])])
    assert len(assigned.ltrb) == 1 and assigned.ltrb.tolist() == [[8, 8, 8, 8]]
    assert assigned.centerness.tolist() == [1.0]
    _, assigned = assign([labels_of([[7.0, 8, 24, 24]], [0])])
    assert 0.9 < assigned.centerness.max() < 1


def test_objects_of_later_images_are_counted_on():
    _, assigned = assign([labels_of([], []), labels_of([[8.0, 8, 24, 24]], [1]), labels_of([[8.0, 8, 24, 24]], [2])])
    assert assigned.image.unique().tolist() == [1, 2] and assigned.object.unique().tolist() == [0, 1]
    assert (assigned.labels[0] == -1).all()


def test_no_objects_at_all():
    _, assigned = assign([labels_of([], [])])
    assert assigned.ltrb.shape == (0, 4) and len(assigned.centerness) == 0
