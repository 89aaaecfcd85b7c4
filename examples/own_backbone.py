"""Train your own backbone on your own folder of images: python examples/own_backbone.py FOLDER [SOURCE]."""

import logging
import sys

from torch import nn

from pipeline import api
from sskt.students import WrappedBackbone

logging.basicConfig(level=logging.INFO, format="%(message)s")
folder, source = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "imagenet"


def block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.BatchNorm2d(out), nn.ReLU())


network = nn.Sequential(block(3, 32), block(32, 64), block(64, 128))
backbone = WrappedBackbone(network, side_px=224, blocks=("0", "1", "2"), transfer_width=128)
api.precompute([f"imagefolder:{folder}"], [source], views=4)
api.train(
    f"imagefolder:{folder}",
    out=f"runs/{folder.strip('/').replace('/', '-')}",
    model=backbone,
    sources=(source,),
    transfer_module=True,
    epochs=10,
)
