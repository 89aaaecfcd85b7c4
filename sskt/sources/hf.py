"""hf:REPO-OR-FOLDER, networks of Hugging Face Transformers: image classifiers, backbones, and the image
towers of CLIP and SigLIP, whose logits are those of a zero-shot classifier of the target's classes.

Nothing is downloaded and no code of a repository runs: a network is a folder, or lies in the hub's cache.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sskt.errors import SourceError
from sskt.hub import cached_file, download_advice, is_repo
from sskt.sources.contract import EMBEDDING, LOGITS, NOTHING, Contract
from sskt.sources.declared import Declared, combine
from sskt.sources.hf_files import (
    HfConfig,
    folder_digest,
    read_config,
    read_processor,
    weights_in,
)
from sskt.sources.prompts import DEFAULT_PROMPTS
from sskt.sources.source import EMBEDDED, LOGITS_OUTPUT, POOLED, Kind, Source, SourceSpec, rest_path

_USUAL_PX = 224


class HfKind(Kind):
    """Folders that `save_pretrained` wrote, and repositories in the hub's cache."""

    prefix, forms, weights_note = "hf", ("hf:REPO-OR-FOLDER",), "a folder, or the hub's cache"
    is_path = is_foreign = True
    outputs = (LOGITS_OUTPUT, POOLED, EMBEDDED)

    def parse(self, name: str) -> SourceSpec:
        """See `Kind.parse`; reads no file, so the number of classes is 0."""
        return self.unopened(self.name_at(_recorded(name)), "transformers")

    def open(self, name: str, weights: Path, told: Contract) -> Source:
        """See `Kind.open`."""
        from sskt.sources.hf_network import load_network, zero_shot  # pays for torch's optional parts

        config = self._config(name)
        declared = _declared(config, told)
        size_px = declared.contract.size or _USUAL_PX
        network, notes = load_network(config, self.parse(name).name, size_px)
        spec = self.parse(name).under(declared.contract)
        spec = replace(
            spec,
            architecture=config.architecture,
            n_classes=network.n_numbers,
            identity=(("config_sha256", config.sha256),),
        )
        source = Source(
            spec,
            network,
            self.digest(weights),
            weights,
            declared=declared,
            notes=notes,
            outputs=(LOGITS_OUTPUT if config.is_classifier else EMBEDDED,),
        )
        if not config.is_pair:
            return source
        return replace(
            source, of_classes=lambda classes: zero_shot(source, config, classes), outputs=(EMBEDDED,)
        )

    def path(self, name: str) -> Path:
        """See `Kind.path`: the folder, also of a repository in the cache."""
        return _folder(name)

    def weights_path(self, name: str, weights_dir: Path) -> Path:  # noqa: ARG002
        """See `Kind.weights_path`."""
        return weights_in(_folder(name))

    def digest(self, weights: Path) -> str:
        """See `Kind.digest`; of weights in several files, that of their digests."""
        return folder_digest(weights)

    def name_by_weights(self, weights: Path | str) -> str:
        """See `Kind.name_by_weights`."""
        return self.name_at(Path(weights).parent)

    def slug(self, name: str) -> str:
        """See `Kind.slug`: the folder's name, or OWNER_NAME of a repository."""
        return self.parse(name).name.partition(":")[2]

    def declared(self, name: str, told: Contract) -> Contract:
        """See `Kind.declared`."""
        try:
            return _declared(self._config(name), told).contract
        except SourceError:  # it has moved, or is not whole: a store records what it declared
            return told

    def describe(self, name: str) -> tuple[SourceSpec, list[str]]:
        """See `Kind.describe`; reads the folder's JSON files only."""
        config = self._config(name)
        declared = _declared(config, NOTHING)
        spec = replace(self.parse(name).under(declared.contract), architecture=config.architecture)
        n_classes = config.n_classes if config.is_classifier else 0
        return replace(spec, n_classes=n_classes), [*declared.statements, *declared.remarks]

    def _config(self, name: str) -> HfConfig:
        folder = _folder(name)
        if folder.is_dir():
            return read_config(folder)
        rest = _recorded(name)
        if not is_repo(rest):
            raise SourceError(f"{folder}: no such folder; give one that save_pretrained wrote")
        raise SourceError(
            f"{self.name_at(rest)}: there is no folder {rest}, and the hub's cache does not have it; nothing "
            f"is downloaded here; {download_advice(rest)}, or give a folder"
        )


def _declared(config: HfConfig, told: Contract) -> Declared:
    """What a network's files say of it. Raises SourceError if nobody says how its images are normalised."""
    contract, remarks, who = read_processor(config)
    if not contract.declares_pixels and not told.declares_pixels:
        raise SourceError(
            f"{config.folder}: has no preprocessor_config.json, so nothing says how it wants its images; "
            f"restore that, or declare it with --contract hf:{config.folder}=mean=0.5,std=0.5,size=224"
        )
    contract = replace(contract, size=contract.size or config.image_size, classes=None)
    if config.is_pair:
        classes, prompts = told.classes or "target", told.prompts or DEFAULT_PROMPTS
        ends_in = ("zero-shot", Contract(returns=LOGITS, classes=classes, prompts=prompts))
    elif config.is_classifier:
        ends_in = ("config.json", Contract(returns=LOGITS, classes=config.classes))
    else:
        ends_in = ("config.json", Contract(returns=EMBEDDING))
    return combine(config.folder.name, told, [(who, contract), ends_in], remarks)


def _recorded(name: str) -> str:
    """What a store records of hf:REST: a folder's own name, or the repository as it is."""
    path = rest_path(name)
    rest = str(path)
    return rest if is_repo(rest) and not path.is_dir() else path.name


def _folder(name: str) -> Path:
    """The folder of a network, which need not exist."""
    path = rest_path(name)
    cached = None if path.is_dir() else cached_file(str(path), "config.json")
    return path if cached is None else cached.parent
