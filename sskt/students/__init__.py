"""Student networks by name, their heads, and what trains with them."""

from sskt.students.alexnet import alexnet_grid
from sskt.students.automatic import Wrappable, wrap_module
from sskt.students.average import AveragedStudent, require_decay
from sskt.students.backbone import (
    Backbone,
    Features,
    frames_seen,
    input_layout,
    sizes_seen,
    to_channels_last,
)
from sskt.students.encoder import PRETEXTS, Encoder
from sskt.students.gradcam import grad_cam
from sskt.students.imported import source_sha256
from sskt.students.initialise import choose_init
from sskt.students.layers import layer_factors
from sskt.students.pixel_student import PixelStudent
from sskt.students.prednet import PredNet
from sskt.students.pretrained import load_pretrained
from sskt.students.referenced import is_reference
from sskt.students.registry import (
    BACKBONES,
    CLIP_BACKBONES,
    DROPOUTS,
    KINETICS_BACKBONES,
    build_backbone,
    is_built_by_name,
    normalisation_of,
    reads_clips,
    require_built_by_name,
)
from sskt.students.resnet3d import ResNet3D
from sskt.students.student import AUXILIARY_HEADS, Student, build_student
from sskt.students.timm_names import TIMM
from sskt.students.timm_weights import timm_weights
from sskt.students.torchvision_video import TORCH_VIDEO, TorchVideo
from sskt.students.vgg19 import VGG19
from sskt.students.wrapped import WrappedBackbone

__all__ = [
    "AUXILIARY_HEADS",
    "BACKBONES",
    "CLIP_BACKBONES",
    "DROPOUTS",
    "KINETICS_BACKBONES",
    "PRETEXTS",
    "TIMM",
    "TORCH_VIDEO",
    "VGG19",
    "AveragedStudent",
    "Backbone",
    "Encoder",
    "Features",
    "PixelStudent",
    "PredNet",
    "ResNet3D",
    "Student",
    "TorchVideo",
    "Wrappable",
    "WrappedBackbone",
    "alexnet_grid",
    "build_backbone",
    "build_student",
    "choose_init",
    "frames_seen",
    "grad_cam",
    "input_layout",
    "is_built_by_name",
    "is_reference",
    "layer_factors",
    "load_pretrained",
    "normalisation_of",
    "reads_clips",
    "require_built_by_name",
    "require_decay",
    "sizes_seen",
    "source_sha256",
    "timm_weights",
    "to_channels_last",
    "wrap_module",
]
