"""The files of a network of Hugging Face Transformers: read without that library, which its rows do not need
to be known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sskt.download import digest_of_data, known_digest_of
from sskt.errors import SourceError
from sskt.sources.contract import Contract
from sskt.sources.preprocessor import read_foreign

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEXES = tuple(f"{name}.index.json" for name in _WEIGHTS)  # of weights in several files
_PROCESSOR, _NESTED = "preprocessor_config.json", "processor_config.json"
_PAIRS = ("CLIPModel", "SiglipModel", "MetaClip2Model")
_CLASSIFIERS = ("ForImageClassification", "ForImageClassificationWithTeacher")
_BACKBONES = ("Model", "ModelWithProjection")
# fields of config.json that no number depends on; the architecture is recorded by itself
_BOOKKEEPING = {
    *("_name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype", "architectures"),
    *("id2label", "label2id", "problem_type", "finetuning_task", "use_cache", "auto_map"),
}


@dataclass(frozen=True, slots=True)
class HfConfig:
    """A network's config.json."""

    folder: Path
    fields: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """The class that was saved, "ViTForImageClassification"."""
        return str((self.fields.get("architectures") or ["AutoModel"])[0])

    @property
    def is_pair(self) -> bool:
        """Whether it is an image tower beside a text tower."""
        return self.architecture in _PAIRS

    @property
    def is_classifier(self) -> bool:
        """Whether it ends in a classifier of its own classes."""
        return self.architecture.endswith(_CLASSIFIERS)

    @property
    def is_backbone(self) -> bool:
        """Whether it ends in features."""
        return self.architecture.endswith(_BACKBONES) and not self.is_pair

    @property
    def n_classes(self) -> int:
        """Classes of a classifier; Transformers' default of 2 is written nowhere."""
        return len(self.fields.get("id2label") or {}) or int(self.fields.get("num_labels") or 2)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Their names; None if there are only placeholders."""
        found = read_foreign({"id2label": self.fields.get("id2label")})[0].classes
        return found if isinstance(found, tuple) else None

    @property
    def image_size(self) -> int | None:
        """The side of its images, if that is recorded."""
        size = self.fields.get("image_size") or self.fields.get("vision_config", {}).get("image_size")
        return size if isinstance(size, int) else None

    @property
    def sha256(self) -> str:
        """The digest of what its rows depend on: its weights' shapes leave numbers of heads and the like
        open.
        """
        return digest_of_data(_without(self.fields))


def read_config(folder: Path) -> HfConfig:
    """Raises SourceError for a folder without a readable config.json."""
    path = folder / "config.json"
    if not path.is_file():
        raise SourceError(f"{folder}: has no config.json; give a folder that save_pretrained wrote")
    return HfConfig(folder, _read(path))


def read_processor(config: HfConfig) -> tuple[Contract, list[str], str]:
    """What its image processor's file says, remarks about it, and the file's name; nothing if there is none.

    Raises SourceError for a file that cannot be read.
    """
    for name in (_PROCESSOR, _NESTED):
        path = config.folder / name
        if path.is_file():
            fields = _read(path)
            fields = fields if name == _PROCESSOR else fields.get("image_processor") or {}
            try:
                contract, remarks = read_foreign(fields)
            except (SourceError, TypeError, ValueError) as error:
                raise SourceError(f"{path}: {error}; correct it") from error
            return contract, [f"{config.folder.name}: {text}" for text in remarks], name
    return Contract(), [], "config.json"


def weights_in(folder: Path) -> Path:
    """The file of a network's weights, or the index of several, whether it exists or not."""
    pairs = zip(_WEIGHTS, _INDEXES, strict=True)  # in the order in which Transformers looks for them
    candidates = [folder / name for pair in pairs for name in pair]
    return next((path for path in candidates if path.is_file()), candidates[0])


def folder_digest(weights: Path) -> str:
    """The sha256 of a weights file, or of the digests of those that an index names. Raises OSError for a file
    that is missing.
    """
    if weights.name not in _INDEXES:
        return known_digest_of(weights)
    names = sorted(set(_read(weights).get("weight_map", {}).values()))
    digests = [[name, known_digest_of(weights.parent / name)] for name in names]
    return digest_of_data(digests)


def _without(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without bookkeeping, that of nested networks included."""
    return {
        name: _without(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in _BOOKKEEPING
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as JSON ({error}); restore it") from error
    if not isinstance(content, dict):
        raise SourceError(f"{path}: is no JSON object; restore it")
    return content
