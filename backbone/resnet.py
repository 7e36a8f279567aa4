"""ResNet-18, -50 and -101 as image encoders, from torchvision's blocks.

Deep Residual Learning for Image Recognition, arXiv 1512.03385; modulated deformable convolutions (DCNv2) of Deformable
ConvNets v2, arXiv 1811.11168. Parameter names are torchvision's and mmdet's, which agree: a released BEVFormer
checkpoint loads with its prefix `img_backbone.` stripped.

Shape legend: N images, C channels, H height, W width, K taps of a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import deform_conv2d

from ..core.checkpoint import load_checkpoint
from ..core.registries import MODELS
from ..core.weights.names import StateDict
from .features import FeatureInfo, validate_out_indices

DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class ModulatedDeformConv2d(nn.Conv2d):
    """DCNv2: a convolution that predicts an offset and a weight for each of its taps, [N, C, H, W] -> the same."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        taps = kernel_size * kernel_size
        self.conv_offset = nn.Conv2d(in_channels, 3 * taps, kernel_size, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        offset_mask = self.conv_offset(x)  # [N, 3K, H, W]
        taps = offset_mask.shape[1] // 3
        offset, mask = offset_mask.split((2 * taps, taps), 1)  # (dy, dx) per tap; one weight per tap
        return deform_conv2d(x, offset, self.weight, stride=self.stride, padding=self.padding, mask=mask.sigmoid())


@MODELS.register_module()
class ResNet(nn.Module):
    """Multi-level features of images: [N, 3, H, W] -> list of NCHW maps, one per entry of `out_indices`.

    BatchNorm becomes SyncBatchNorm on several GPUs by the runner's `sync_bn="torch"`; keys do not change.

    Args:
        depth: 18, 50 or 101.
        style: "caffe" puts a block's stride in its first 1x1 convolution, "pytorch" in its 3x3.
        out_indices: stages to return, 0 to 3 (C2 to C5, stride 4 to 32).
        base_channels: width of the first stage's blocks, doubling per stage (outputs are four times as wide, but those
            of ResNet-18 as wide).
        stem_channels: channels after the first convolution, None for `base_channels`.
        frozen_stages: -1 trains everything, k >= 0 freezes the stem and the first k stages.
        norm_eval: keep all BatchNorms in evaluation mode (running statistics) while training.
        norm_requires_grad: train the BatchNorms' scale and shift.
        stage_with_dcn: per stage, whether its 3x3 convolutions are DCNv2.
        zero_init_residual: start each block as the identity.
        pretrained: checkpoint to load when `init_weights()` is called (MMEngine's runner calls it before training).
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(
        self,
        *,
        depth: int = 50,
        style: str = "pytorch",
        out_indices: Sequence[int] = (0, 1, 2, 3),
        base_channels: int = 64,
        stem_channels: int | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        norm_requires_grad: bool = True,
        stage_with_dcn: Sequence[bool] = (False, False, False, False),
        zero_init_residual: bool = True,
        pretrained: str | None = None,
    ):
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth={depth}: choose one of {', '.join(map(str, DEPTHS))}")
        if style not in ("caffe", "pytorch"):
            raise ValueError(f"style={style!r}: choose 'caffe' or 'pytorch'")
        if depth == 18 and (style == "caffe" or any(stage_with_dcn)):
            raise ValueError("depth=18 has no bottlenecks: style='caffe' and stage_with_dcn are for 50 and 101")
        if not -1 <= frozen_stages <= 4:
            raise ValueError(f"frozen_stages={frozen_stages}: choose -1 (train all) to 4")
        self.base_channels = base_channels
        self.block = BasicBlock if depth == 18 else Bottleneck
        self.out_indices = validate_out_indices(out_indices, 4)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.pretrained = pretrained

        channels = stem_channels or base_channels
        self.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for i, num_blocks in enumerate(DEPTHS[depth]):
            width = base_channels << i
            stage = _make_stage(self.block, channels, width, num_blocks, 1 if i == 0 else 2, style, stage_with_dcn[i])
            self.add_module(f"layer{i + 1}", stage)
            channels = width * self.block.expansion
        self._init_random(zero_init_residual)
        if not norm_requires_grad:
            for norm in self._norms():
                norm.requires_grad_(False)
        for module in self._frozen_modules():
            module.requires_grad_(False)

    @property
    def stages(self) -> list[nn.Module]:
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Channels and stride of each returned map."""
        width = self.base_channels * self.block.expansion
        return tuple(FeatureInfo(width << i, 4 << i) for i in self.out_indices)

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Images [N, 3, H, W] -> the maps that `feature_info` describes."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))  # [N, C, H/4, W/4]
        outputs = []
        for i, stage in enumerate(self.stages[: self.out_indices[-1] + 1]):
            x = stage(x)
            if i in self.out_indices:
                outputs.append(x)
        return outputs

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.forward_features(images)

    def init_weights(self) -> None:
        """Load the checkpoint named by `pretrained`, if any; else keep the random initial weights."""
        if self.pretrained is not None:
            load_checkpoint(self, self.pretrained)

    def adapt_checkpoint(self, state: StateDict) -> tuple[StateDict, list[str]]:
        """Leave the classification layer of an ImageNet checkpoint out."""
        kept = {key: value for key, value in state.items() if not key.startswith("fc.")}
        return kept, [] if len(kept) == len(state) else ["left out the classification layer fc"]

    def train(self, mode: bool = True) -> ResNet:
        """Set the mode; frozen stages, and all norms with `norm_eval`, stay in evaluation mode."""
        super().train(mode)
        for module in [*self._frozen_modules(), *(self._norms() if self.norm_eval else [])]:
            module.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        return [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        return [self.conv1, self.bn1, *self.stages[: self.frozen_stages]]

    def _init_random(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, ModulatedDeformConv2d):  # starts as a plain convolution with taps of weight 1/2
                nn.init.zeros_(module.conv_offset.weight)
                nn.init.zeros_(module.conv_offset.bias)
            elif isinstance(module, self.block) and zero_init_residual:
                last = module.bn3 if self.block is Bottleneck else module.bn2
                nn.init.zeros_(last.weight)


def _make_stage(
    block_type: type[BasicBlock | Bottleneck],
    in_channels: int,
    width: int,
    num_blocks: int,
    stride: int,
    style: str,
    with_dcn: bool,
) -> nn.Sequential:
    out_channels = width * block_type.expansion
    blocks = []
    for i in range(num_blocks):
        downsample = None
        if i == 0 and (stride > 1 or in_channels != out_channels):
            downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        block = block_type(in_channels if i == 0 else out_channels, width, stride if i == 0 else 1, downsample)
        if style == "caffe":
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
        if with_dcn:
            block.conv2 = ModulatedDeformConv2d(width, width, 3, block.conv2.stride[0], padding=1)
        blocks.append(block)
    return nn.Sequential(*blocks)
