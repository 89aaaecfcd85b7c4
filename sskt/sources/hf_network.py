"""Networks of Hugging Face Transformers as sources: load them, and find what they return."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from sskt.errors import SourceError
from sskt.extras import library
from sskt.sources.hf_modules import Backbone, Classifier, HfNetwork, ImageTower, ZeroShot
from sskt.sources.hf_text import text_features
from sskt.sources.prompts import DEFAULT_PROMPTS, prompts_sha256
from sskt.sources.source import LOGITS_OUTPUT, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sskt.sources.hf_files import HfConfig

_UNREADABLE = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ImportError)
_SAME = 1e-3  # relative: two forwards of the same images


def load_network(config: HfConfig, name: str, size_px: int) -> tuple[HfNetwork, tuple[str, ...]]:
    """The network in a folder, in float32, and remarks on its weights; `size_px` is the side of its images.

    Raises SourceError if it reads no images, its weights are missing, damaged or of another network, or it
    gives other features when it is asked again; MissingExtraError without Transformers.
    """
    transformers = library("transformers", extra="hf", needed_by=name)
    made_by = _class_of(config, transformers, name)
    with _quiet(transformers):
        try:
            model, report = made_by.from_pretrained(
                config.folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
        except _UNREADABLE as error:
            raise SourceError(
                f"{config.folder}: its weights cannot be loaded into {config.architecture} "
                f"({_reason(error)}); save or fetch the folder again"
            ) from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in ("safetensors", "safetensors_rust", "pickle"):
                raise
            raise SourceError(
                f"{config.folder}: its weights file is damaged ({_reason(error)}); save or fetch it again"
            ) from error
    model.eval().requires_grad_(False)
    missing, left_out = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    lacks_pooler = bool(missing) and all(key.startswith("pooler.") for key in missing)
    if missing and not (config.is_backbone and lacks_pooler):
        raise SourceError(
            f"{config.folder}: its weights lack {len(missing)} tensors of {config.architecture} "
            f"({', '.join(missing[:3])}), which would be random; save it again with all of them"
        )
    notes = []
    if lacks_pooler:
        notes.append(f"{config.folder}: has no pooler, its feature is that of the first token")
    if left_out:
        notes.append(
            f"{config.folder}: {len(left_out)} tensors of its file ({left_out[0]}, ...) are not used"
        )
    network = _wrap(model, config, size_px, uses_pooler=not lacks_pooler)
    _require_function(network, name)
    return network, tuple(notes)


def zero_shot(source: Source, config: HfConfig, classes: tuple[str, ...]) -> Source:
    """The classifier of `classes`, or of those that the user declared, of an opened image tower.

    Raises SourceError if its tokenizer cannot be read.
    """
    contract, tower = source.spec.contract, source.module
    if not isinstance(tower, ImageTower):
        raise TypeError(f"{source.spec.name} has no image tower")
    names = contract.classes if isinstance(contract.classes, tuple) else classes
    if len(names) < 2:
        raise SourceError(
            f"{source.spec.name} is a zero-shot classifier, and there are {len(names)} class names; declare "
            f"them with --contract {source.spec.name}=classes=FILE, or ask it for @embedding"
        )
    prompts = contract.prompts or DEFAULT_PROMPTS
    text, tokens_sha256 = text_features(tower.pair, config, prompts, names, source.spec.name)
    about = (("prompts_sha256", prompts_sha256(prompts, names)), ("tokens_sha256", tokens_sha256))
    spec = replace(source.spec, n_classes=len(names), identity=(*source.spec.identity, *about))
    return replace(source, spec=spec, module=ZeroShot(tower, text).eval(), outputs=(LOGITS_OUTPUT,))


def _class_of(config: HfConfig, transformers: Any, name: str) -> Any:
    """The class that its config names. Raises SourceError for one that is no network of images to rows."""
    made_by = getattr(transformers, config.architecture, None)
    if made_by is None:
        own = "brings its own code, which is not run" if "auto_map" in config.fields else "is unknown"
        raise SourceError(
            f"{name}: its class {config.architecture} {own} to Transformers {transformers.__version__}; "
            f"upgrade that, or export the network and name it program:FILE.pt2"
        )
    if config.is_pair:
        return made_by
    reads = getattr(made_by, "main_input_name", "pixel_values")
    if reads != "pixel_values":
        raise SourceError(
            f"{name}: {config.architecture} reads {reads}, expected a network that reads images"
        )
    if not (config.is_classifier or config.is_backbone):
        raise SourceError(
            f"{name}: {config.architecture} is no image classifier or backbone; load its backbone with "
            f"AutoModel.from_pretrained, and save that"
        )
    return made_by


def _wrap(model: Any, config: HfConfig, size_px: int, *, uses_pooler: bool) -> HfNetwork:
    if config.is_pair:
        return ImageTower(model, size_px)
    if config.is_classifier:
        return Classifier(model, config.n_classes, size_px)
    return Backbone(model, size_px, uses_pooler=uses_pooler)


def _require_function(network: HfNetwork, name: str) -> None:
    """Raise SourceError for a network that draws random numbers, or cannot read an image of its own size."""
    x = torch.linspace(-1, 1, 3 * network.size_px**2).view(1, 3, network.size_px, network.size_px)
    try:
        with torch.inference_mode():
            first, again = network(x), network(x)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{name}: cannot read an image of {network.size_px} px ({_reason(error)})"
        ) from error
    if not torch.allclose(first, again, rtol=_SAME, atol=_SAME * float(first.abs().max()), equal_nan=True):
        raise SourceError(
            f"{name} gives other features when it is asked again about the same image, as networks that mask "
            f"patches at random do; a source must be a function of its image"
        )
    network.n_numbers = int(first.shape[1])


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without Transformers' own log and progress bars: what matters is in the report that it returns."""
    log = transformers.utils.logging
    before, had_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        if had_bars:
            log.enable_progress_bar()
