"""Image encoders and their parts: InternImage, ResNet, FPN, checkpoints, layer-wise learning rates."""

from ..core.checkpoint import LoadReport, load_checkpoint, load_state, save_safetensors
from ..core.weights.files import read_state_dict
from .builder import internimage
from .cpu.inference import prepare_inference
from .features import FeatureInfo
from .fpn import FPN
from .internimage.classifier import InternImageClassifier, InternImageMetaFormer
from .internimage.composite import CBInternImage
from .internimage.dcnv3_layer import DCNv3
from .internimage.model import InternImage
from .internimage.variants import VARIANTS, Variant
from .resnet import ResNet

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
