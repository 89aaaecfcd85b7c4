"""timm's published weights, where they have been fetched: the caches of the Hugging Face hub and of torch.
Nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path

import torch

from sskt.errors import SourceError
from sskt.hub import cached_file
from sskt.students.timm_names import TIMM, timm_knowing


def timm_weights(name: str) -> Path:
    """The published weights of a network in the cache of the hub or of torch. Raises SourceError if they are
    in neither.
    """
    config = timm_knowing(name).get_pretrained_cfg(name)
    if config.hf_hub_id:
        names = (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin")
        for file in filter(None, names):
            if found := cached_file(config.hf_hub_id, file):
                return found
    if config.url:
        path: Path = Path(torch.hub.get_dir()) / "checkpoints" / config.url.rpartition("/")[2]
        if path.is_file():
            return path
    if not (config.hf_hub_id or config.url):
        raise SourceError(
            f"--pretrained: timm publishes no weights for {name}; name another network, or give a file with "
            f"--finetune-from"
        )
    raise SourceError(
        f"--pretrained: the weights of {TIMM}{name} ({config.hf_hub_id or config.url}) are not in the caches "
        f'of this machine; fetch them with `python -c "import timm; timm.create_model({name!r}, '
        f'pretrained=True)"`, or give a file with --finetune-from'
    )
