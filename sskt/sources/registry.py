"""The source networks that a user can name: `imagenet`, `places365`, `imagenet:resnet18`,
`kinetics:r3d_18`, `program:FILE.pt2`, `run:FOLDER`.

The paper's two are ResNet50 on ImageNet (torchvision IMAGENET1K_V1) and ResNet50 on Places365 (CSAILVision).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from pathlib import Path

import torchvision
from torch import nn

from sskt.checkpoints import read_checkpoint
from sskt.download import digest_of, fetch, fetch_recorded
from sskt.errors import SourceError
from sskt.normalise import CLIP_MEANS, IMAGENET_MEAN, IMAGENET_STD
from sskt.sources.clip_classifier import ClipClassifier, published
from sskt.sources.contract import EMBEDDING, LOGITS, NOTHING, Contract, sentence
from sskt.sources.declared import OPTION, Declared, declared_of
from sskt.sources.exported import read_program
from sskt.sources.published_contract import published_contract
from sskt.sources.run import WEIGHTS, Predictor, read_trained
from sskt.sources.source import Source, SourceSpec
from sskt.students import CLIP_BACKBONES
from sskt.students.resnet3d import ResNet3D
from sskt.students.torchvision_video import TORCH_VIDEO, TorchVideo
from sskt.weights import load_into

_N_CLASSES = {"imagenet": 1000, "places365": 365, "kinetics": 400}
_CLIP_TASK = "kinetics"  # its networks read clips
_PAPER_ARCHITECTURE = {"imagenet": "resnet50", "places365": "resnet50", "kinetics": "resnet3d18"}
_PLACES_URL = "http://places2.csail.mit.edu/models_places365/{}_places365.pth.tar"
_PLACES_PUBLISHED = ("alexnet", "resnet18", "resnet50", "densenet161")
# torchvision's files for these two belong to a network that undoes our normalisation on its way in.
_OWN_NORMALISATION = ("googlenet", "inception_v3")


def named_sources() -> list[SourceSpec]:
    """Every source whose weights are published, the paper's two first."""
    imagenet = [a for a in _architectures() if _published("imagenet", a)]
    names = ["imagenet", "places365"]
    names += [f"imagenet:{a}" for a in imagenet if a != _PAPER_ARCHITECTURE["imagenet"]]
    names += [f"places365:{a}" for a in _PLACES_PUBLISHED if a != _PAPER_ARCHITECTURE["places365"]]
    names += [f"{_CLIP_TASK}:{a}" for a in CLIP_BACKBONES if _published(_CLIP_TASK, a)]
    return [parse_source(name) for name in names]


def parse_source(name: str) -> SourceSpec:
    """The source that `name` means; nothing but a run's config is read. Raises SourceError for an unknown
    name.
    """
    task, _, rest = name.partition(":")
    if task == "program" and rest:
        note = "a torch.export program, with its own weights"
        return SourceSpec(
            f"program:{Path(rest).name}", task, "program", 0, None, None, IMAGENET_MEAN, IMAGENET_STD, note
        )
    if task == "run" and rest:
        return _of_run(Path(rest).expanduser())
    if task not in _N_CLASSES or name.endswith(":"):
        raise SourceError(
            f"source {name!r} is unknown, expected imagenet, places365, imagenet:ARCHITECTURE, "
            f"places365:ARCHITECTURE, kinetics:ARCHITECTURE, program:FILE.pt2 or "
            f"run:FOLDER; sskt sources lists them"
        )
    architecture = rest or _PAPER_ARCHITECTURE[task]
    known = list(CLIP_BACKBONES) if task == _CLIP_TASK else _architectures()
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3) or known[:2]
        raise SourceError(
            f"source {name!r}: there is no architecture {architecture!r}, did you mean "
            f"{' or '.join(near)}; sskt sources lists them, and any other network can be exported and given "
            f"as program:FILE.pt2"
        )
    url = _published(task, architecture)
    prefix = re.search(r"-([0-9a-f]{8,})\.pth$", url) if url else None
    mean, std = _normalisation(task, architecture)
    return SourceSpec(
        name=task if architecture == _PAPER_ARCHITECTURE[task] else f"{task}:{architecture}",
        task=task,
        architecture=architecture,
        n_classes=_N_CLASSES[task],
        url=url,
        sha256_prefix=prefix[1] if prefix else None,
        mean=mean,
        std=std,
        weights_note=_note(task, url, prefix[1] if prefix else None),
        reads_clips=task == _CLIP_TASK,
        contract=published_contract(task, architecture, mean, std),
    )


def source_slug(name: str) -> str:
    """A short name safe for file systems: "imagenet-resnet50", "program-places365_squeezenet"."""
    spec = parse_source(name)
    rest = spec.name.partition(":")[2]
    last = Path(rest).stem if spec.task == "program" else rest if spec.task == "run" else spec.architecture
    return re.sub(r"[^A-Za-z0-9._-]", "_", f"{spec.task}-{last}")


def open_source(
    name: str, *, weights: Path | None = None, weights_dir: Path, told: Contract | None = None
) -> Source:
    """The named source with weights from `weights`, or else from `weights_dir`, downloaded and verified when
    not there. `told` is what the user says of it, before anything that its file declares.

    Raises SourceError when the weights do not fit or cannot be read, or the contract does not fit them,
    DownloadError when they cannot be fetched.
    """
    source = _opened(name, weights, weights_dir, told or NOTHING)
    _require_fitting(source.spec)
    if told is not None and source.declared is None:
        return replace(source, declared=Declared(told, told, (f"{sentence(told)} ({OPTION})",)))
    return source


def _opened(name: str, weights: Path | None, weights_dir: Path, told: Contract) -> Source:
    """See `open_source`; what the contract says is not held against the network."""
    spec = parse_source(name)
    if spec.task == "program":
        if weights is not None:
            raise SourceError(
                f"{spec.name} carries its own weights, {weights} was given beside it; leave that out"
            )
        path = Path(name.partition(":")[2]).expanduser()
        program = read_program(path)
        declared = declared_of(path, told)
        opened = replace(
            spec.under(declared.contract), n_classes=program.n_classes, reads_clips=program.reads_clips
        )
        return Source(
            opened,
            program.module,
            _digest(path),
            path,
            program.side_range_px,
            declared,
            batch_range=program.batch_range,
            notes=program.notes,
        )
    spec = spec.under(told)
    if spec.task == "run":
        folder = Path(name.partition(":")[2]).expanduser()
        module: nn.Module = Predictor(folder)
        file = folder / WEIGHTS
        return Source(spec, module.eval().requires_grad_(False), _digest(file), file)
    path = weights_file(name, weights, weights_dir)
    checkpoint = read_checkpoint(path)  # first: a wrong path should not take a second to be told
    if spec.task == _CLIP_TASK:
        module = ClipClassifier(spec.architecture, spec.n_classes)
        notes = load_into(module, checkpoint, task=spec.task, n_classes=spec.n_classes, published=published)
    else:
        module = _network(spec)
        notes = load_into(module, checkpoint, task=spec.task, n_classes=spec.n_classes)
    return Source(spec, module.eval().requires_grad_(False), _digest(path), path, notes=notes)


def weights_file(name: str, weights: Path | None, weights_dir: Path) -> Path:
    """Where the weights of a named source lie: at `weights`, or as published in `weights_dir`, downloaded and
    verified when not there. Raises SourceError if none are published, DownloadError if they cannot be had.
    """
    return weights if weights is not None else _downloaded(parse_source(name), weights_dir)


def published_digest(name: str, weights: Path) -> bool:
    """Whether a file is the published weights of a source, as far as their checksum is known."""
    prefix = parse_source(name).sha256_prefix
    return prefix is not None and _digest(weights).startswith(prefix)


def _require_fitting(spec: SourceSpec) -> None:
    """Raise SourceError for a contract that says another number of classes, or nothing that can teach."""
    classes = spec.contract.classes
    if isinstance(classes, tuple) and len(classes) != spec.n_classes:
        raise SourceError(
            f"{spec.name}: its contract names {len(classes)} classes ({classes[0]}, ...) and it returns "
            f"{spec.n_classes} numbers; correct the names, or leave them out"
        )
    if spec.returns == EMBEDDING:
        raise SourceError(
            f"{spec.name} is declared to return an embedding, which no loss can compare with classes, and "
            f"features are not stored yet; export the network with its classifier"
        )


def _of_run(folder: Path) -> SourceSpec:
    """A student of ours; where its folder is not at hand, only its name is known."""
    note = "a run of ours"
    name = f"run:{folder.name}"
    if not (folder / "config.json").is_file():
        return SourceSpec(name, "run", "", 0, None, None, IMAGENET_MEAN, IMAGENET_STD, note)
    trained = read_trained(folder)
    known = (trained.model, trained.n_classes, None, None)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    if trained.reads_clips:
        mean, std = _normalisation(_CLIP_TASK, trained.model)
        if trained.model not in TORCH_VIDEO:
            mean = CLIP_MEANS[trained.clip_mean]
    contract = Contract(mean, std, (0.0, 1.0), "rgb", classes=trained.classes, returns=LOGITS)
    return SourceSpec(
        name, "run", *known, mean, std, note, reads_clips=trained.reads_clips, contract=contract
    )


def _downloaded(spec: SourceSpec, weights_dir: Path) -> Path:
    """The published weights of `spec` in `weights_dir`, the same bytes at every use."""
    if spec.url is None:
        raise SourceError(
            f"{spec.name}: no weights are published; pass a file with --weights {spec.name}=PATH"
        )
    path = weights_dir / spec.url.rsplit("/", 1)[-1]
    if spec.sha256_prefix is None:
        return fetch_recorded(spec.url, path)
    return fetch(spec.url, path, sha256_prefix=spec.sha256_prefix)


def _network(spec: SourceSpec) -> nn.Module:
    """The torchvision architecture with a head for the source's classes, as published weights expect it."""
    own: dict[str, bool] = {}
    if spec.architecture in _OWN_NORMALISATION:
        own = {"transform_input": spec.task == "imagenet", "aux_logits": True, "init_weights": False}
    network: nn.Module = torchvision.models.get_model(
        spec.architecture, weights=None, num_classes=spec.n_classes, **own
    )
    return network


def _architectures() -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _published(task: str, architecture: str) -> str | None:
    """The URL of the weights, None where nobody publishes any."""
    if task == "places365":
        return _PLACES_URL.format(architecture) if architecture in _PLACES_PUBLISHED else None
    if task == _CLIP_TASK:
        if architecture not in TORCH_VIDEO:
            return None
        return str(torchvision.models.get_model_weights(architecture)["KINETICS400_V1"].url)
    entry = getattr(torchvision.models.get_model_weights(architecture), "IMAGENET1K_V1", None)
    return None if entry is None else str(entry.url)


def _normalisation(task: str, architecture: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """ImageNet's mean and std, but for the few torchvision networks that were trained with others."""
    if task == _CLIP_TASK:
        network = TorchVideo if architecture in TORCH_VIDEO else ResNet3D
        return network.mean, network.std
    entry = getattr(torchvision.models.get_model_weights(architecture), "IMAGENET1K_V1", None)
    if task != "imagenet" or entry is None:
        return IMAGENET_MEAN, IMAGENET_STD
    transforms = entry.transforms()
    return tuple(transforms.mean), tuple(transforms.std)


def _note(task: str, url: str | None, prefix: str | None) -> str:
    if url is None:
        return "none published: pass --weights"
    if prefix is None:
        return "CSAILVision; no checksum published: recorded at the first download"
    weights = "KINETICS400_V1" if task == _CLIP_TASK else "IMAGENET1K_V1"
    return f"torchvision {weights}, sha256 begins {prefix}"


def _digest(path: Path) -> str:
    try:
        return digest_of(path)
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read ({error.strerror}); check the file and its permissions"
        ) from error
