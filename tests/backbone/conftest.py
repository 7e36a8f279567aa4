from support.backbone_reference import assert_near, reference, reference_index  # noqa: F401
