"""Image encoders and what belongs to them: InternImage, ResNet, FPN, checkpoints, layer-wise learning rates."""

from .builder import internimage
from .cb_internimage import CBInternImage
from .checkpoint import LoadReport, load_checkpoint, load_state, read_state_dict, save_safetensors
from .classifier import InternImageClassifier, InternImageMetaFormer
from .dcnv3_layer import DCNv3
from .features import FeatureInfo
from .fpn import FPN
from .inference import prepare_inference
from .internimage import InternImage
from .resnet import ResNet
from .variants import VARIANTS, Variant

__all__ = [
    "FPN",
    "VARIANTS",
    "CBInternImage",
    "DCNv3",
    "FeatureInfo",
    "InternImage",
    "InternImageClassifier",
    "InternImageMetaFormer",
    "LoadReport",
    "ResNet",
    "Variant",
    "internimage",
    "load_checkpoint",
    "load_state",
    "prepare_inference",
    "read_state_dict",
    "save_safetensors",
]
