"""Table rows, as plain dicts, for the commands that list stores, sources, targets and recipes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cache import CacheError, Location, Store, find_stores, flatten
from pipeline.data import TARGETS, DatasetSpec, family_of, parse_target, path_families, prepared
from pipeline.runtime import Paths
from pipeline.stores import stored_output
from sskt.errors import SourceError
from sskt.recipes import Recipe, all_recipes, recipe_for
from sskt.sources import (
    LOGITS_OUTPUT,
    MAP,
    asked_of,
    assumed,
    kind_of,
    kinds,
    named_sources,
    output_kind,
    parse_source,
    scaled_side,
    shown,
)

_BY_SIZE = "by images"


def store_rows(cache_dir: Location) -> list[dict[str, Any]]:
    """One row per store; a damaged store has only its path and, under "problem", its error."""
    return [_store_row(path) for path in find_stores(cache_dir)]


def store_fields(path: Location) -> dict[str, Any]:
    """Everything about one store, flat: sizes, fingerprint and origin."""
    store = Store.open(path)
    finished = store.finished_units()
    blocks = [store.rows_of(unit.block) for unit in finished]
    n_labels = sum(rows.stop - rows.start for rows in blocks)
    bytes_per_label = store.nbytes / n_labels if n_labels else None
    return {
        **_row_of(store, len(finished)),
        "block_rows": store.block_rows,
        "bytes_per_label": bytes_per_label,
        "bytes_per_class": bytes_per_label and bytes_per_label / store.n_classes,
        **dict(flatten(store.manifest.identity)),
        **{f"made_by.{name}": value for name, value in flatten(store.manifest.made_by)},
    }


def source_rows() -> list[dict[str, Any]]:
    """Every source with published weights, and how to write the others."""
    rows = [
        {"source": s.name, "architecture": s.architecture, "classes": s.n_classes, "weights": s.weights_note}
        for s in named_sources()
    ]
    return rows + [
        {"source": form, "architecture": "any", "classes": None, "weights": kind.weights_note}
        for kind in kinds()
        if not kind.published()
        for form in kind.forms
    ]


def source_fields(name: str) -> dict[str, Any]:
    """The contract of one source: its input, output and classes, and whatever is assumed because nothing
    declares it. Raises SourceError for an unknown name or a file that cannot be read.
    """
    if kind_of(name).is_fitted:
        return _probe_fields(name)
    if "://" in name and kind_of(name).files:
        raise SourceError(f"{name}: is at a URL, and nothing is downloaded here; name a copy on a disk")
    asked = parse_source(name)
    spec, remarks = kind_of(name).describe(name)
    spec = replace(spec, name=asked.name, output=asked.output)
    contract = spec.contract
    if spec.output != LOGITS_OUTPUT:
        contract = replace(contract, returns=spec.returns, classes=None)
    named = contract.classes is not None
    return {
        "source": spec.name,
        "architecture": spec.architecture,
        "mean": shown(contract.mean or spec.mean),
        "std": shown(contract.std or spec.std),
        "range": shown(contract.range or (0.0, 1.0)),
        "channels": contract.channels or "rgb",
        "interpolation": contract.interpolation or "bilinear",
        "size": contract.size or "as the target asks",
        "trained_on": contract.crop,
        "returns": spec.returns,
        "output": spec.output,
        "n_classes": (spec.n_classes or None) if output_kind(spec.output) != MAP else None,
        "classes": shown(contract.classes) if named else None,
        "assumed": assumed(contract) or None,
        "declared": "; ".join(remarks) or None,
    }


def _probe_fields(name: str) -> dict[str, Any]:
    """What there is to say of a probe: it reads stored rows, and no images."""
    return {
        "source": parse_source(name).name,
        "architecture": parse_source(name).architecture,
        "reads": ", ".join(asked_of(name)) or "every source with a store for the target",
        "returns": "logits",
        "classes": "the target's",
    }


def target_rows(paths: Paths) -> list[dict[str, Any]]:
    """Every target: its classes and defaults, and whether its files are prepared."""
    ready = prepared(paths.data_dir, paths.index_dir)
    by_name = [
        _target_row(name, spec, name in ready or family_of(spec).is_bundled) for name, spec in TARGETS.items()
    ]
    by_path = [f"{family.name}:PATH" for family in path_families() if family.has_labels]
    return by_name + [_target_row(name, parse_target(name), None) for name in by_path]


def recipe_rows() -> list[dict[str, Any]]:
    """Every recipe, the paper's first; settings that the paper leaves open are ours."""
    return [
        {
            "target": recipe.target,
            "recipe": recipe.name,
            "models": ", ".join(recipe.models),
            "epochs": recipe.epochs or _BY_SIZE,
            "lr": recipe.lr or _BY_SIZE,
            "finetune_lr": recipe.finetune_lr,
            "schedule": recipe.schedule,
            "milestones": _only(recipe, "multistep", ", ".join(map(str, recipe.milestones))),
            "gamma": _only(recipe, "multistep plateau", recipe.gamma),
            "patience": _only(recipe, "plateau", recipe.patience),
            "warm_up": _only(recipe, "trapezoid warm-cosine", recipe.warm_up),
            "cool_down": _only(recipe, "trapezoid", recipe.cool_down),
            "momentum": recipe.momentum,
            "dampening": recipe.dampening,
            "nesterov": recipe.nesterov,
            "weight_decay": recipe.weight_decay,
            "decay_norms": recipe.decay_norms,
            "ema": recipe.ema or None,
            "layer_decay": None if recipe.layer_decay == 1 else recipe.layer_decay,
            "label_smoothing": recipe.label_smoothing or None,
            "batch_size": recipe.batch_size or _BY_SIZE,
            "optimizer": recipe.optimizer,
            "loss": recipe.primary_loss,
            "aux_loss": recipe.aux_loss,
            "temperature": recipe.temperature,
            "alpha": recipe.alpha,
            "paper": "table 1" if recipe.published else None,
        }
        for recipe in all_recipes()
    ]


def _only(recipe: Recipe, schedules: str, value: Any) -> Any:
    """A setting that some schedules alone read; None for a recipe with another."""
    return value if recipe.schedule in schedules.split() else None


def _target_row(name: str, spec: DatasetSpec, is_prepared: bool | None) -> dict[str, Any]:
    return {
        "target": name,
        "classes": spec.n_classes,
        "student_px": spec.side_px,
        "source_px": scaled_side(spec.side_px, spec.source_scale),
        "plan": spec.plan_kind,
        "model": recipe_for(name).models[0],
        "prepared": is_prepared,
    }


def _store_row(path: Location) -> dict[str, Any]:
    try:
        store = Store.open(path)
        return _row_of(store, len(store.finished_units()))
    except CacheError as error:
        return {"path": str(path), "problem": str(error)}


def _row_of(store: Store, n_done: int) -> dict[str, Any]:
    holds_logits = stored_output(store) == LOGITS_OUTPUT
    return {
        "target": f"{store.manifest.identity['target']['name']}/{store.manifest.identity['target']['split']}",
        "source": store.manifest.identity["source"]["name"],
        "output": stored_output(store),
        "samples": store.n_samples,
        "classes": store.n_classes if holds_logits else None,
        "numbers": store.form.width,
        "student_px": store.manifest.identity["plan"]["side_px"],
        "source_px": store.manifest.identity["input"]["side_px"],
        "top_k": store.top_k,
        "views": store.n_views,
        "units": f"{n_done}/{store.n_views * store.n_blocks}",
        "bytes": store.nbytes,
        "path": str(store.path),
    }
