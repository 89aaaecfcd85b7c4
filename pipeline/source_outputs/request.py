"""What a run needs of its sources: the samples, the plan, and which store of a source serves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cache import Store, find_stores
from pipeline.data import RELEASED, Augmentation, Dataset, DatasetSpec, Plan, Pool
from pipeline.runtime import Execution, Paths, World, folder_words
from pipeline.stores import (
    Candidate,
    identity,
    matching_store,
    sound_stores,
    spec_on_store,
    store_folder,
    stored_output,
    stores_elsewhere,
)
from sskt.errors import quoted
from sskt.sources import CONVERTED, OPTION, network_of, output_of, prompts_sha256, to_told


@dataclass(frozen=True, slots=True)
class DataRequest:
    """One run's target and everything that its source outputs depend on."""

    target: str  # as the user named it
    spec: DatasetSpec
    dataset: Dataset
    augmentation: Augmentation
    plan: Plan
    paths: Paths
    execution: Execution
    temperature: float  # the student's, at which a store of top-k logits is read
    n_rows: int  # samples per epoch that this process trains on
    n_forwards: int  # images that a live source would process in the whole run
    n_step: int  # samples of a training step on this process
    limit: int | None = None  # the --limit on samples
    source_weights: Mapping[str, str] = field(default_factory=dict)  # sha256 by source, if the run is resumed
    whole: Dataset | None = None  # `dataset` with the samples held out for validation, if any were
    # the option because of which rows that hold only the largest numbers are refused
    needs_every_number: str | None = None
    pools: tuple[Pool, ...] = ()  # samples without labels that are trained on beside `dataset`
    world: World = World()  # noqa: RUF009 - frozen; the ranks that train together
    classes: tuple[str, ...] | None = None  # the target's, if `dataset` is a pool

    @property
    def stored(self) -> Dataset:
        """The samples that a store should hold."""
        return self.dataset if self.whole is None else self.whole

    @property
    def class_names(self) -> tuple[str, ...]:
        """The target's classes."""
        return self.stored.classes if self.classes is None else self.classes

    @property
    def n_samples(self) -> int:
        """Samples of an epoch, those of the pools included."""
        return len(self.dataset) + sum(len(pool.dataset) for pool in self.pools)

    def weights_sha256(self, source: str) -> str | None:
        """sha256 of the weights that the run began with, or of the local file; None if neither is known."""
        return self.source_weights.get(source) or self.paths.weights_sha256(source)

    def fingerprint(self, store: Store, source: str) -> dict[str, Any]:
        """The fingerprint that `store` must have to serve this run; if the source's weights are not on this
        machine, the store's record of them is trusted. A resumed run keeps the weights that it began with,
        even if the file has changed since.
        """
        about = dict(store.manifest.identity["source"])
        sha256 = self.weights_sha256(source)
        if sha256 is not None:
            about["weights_sha256"] = sha256
        spec = spec_on_store(source, self.paths, store)
        about["returns"] = spec.returns if spec.returns in CONVERTED else None
        if "prompts_sha256" in about:  # a zero-shot classifier, of this run's classes
            declared = spec.contract.classes
            names = declared if isinstance(declared, tuple) else self.class_names
            about["prompts_sha256"] = prompts_sha256(spec.contract.prompts, names)
        about = {name: value for name, value in about.items() if value is not None}
        input_map = self.augmentation.input_map(self.spec, spec)
        return identity(about, input_map, self.plan, self.stored, top_k=store.top_k)

    def matching(self, source: str) -> Store | None:
        """The store of `source` that serves this run; see `matching_store`."""
        cache_dir = self.paths.cache_dir
        output = output_of(source)
        in_folder = [Store.open(path) for path in find_stores(store_folder(cache_dir, self.stored, source))]
        by_name = [store for store in in_folder if stored_output(store) == output]
        elsewhere = stores_elsewhere(cache_dir, self.stored, source, self.weights_sha256(source))
        return matching_store(
            self.stored,
            source,
            [Candidate(store, self.fingerprint(store, source)) for store in by_name],
            (Candidate(store, self.fingerprint(store, source)) for store in elsewhere),
        )

    def lacking(self, source: str) -> str:
        """A source that has no store, for a message: with the outputs of its network that are stored."""
        folder = store_folder(self.paths.cache_dir, self.stored, source)
        outputs = sorted({stored_output(store) for store in sound_stores(folder)} - {output_of(source)})
        return f"{source} ({' and '.join(outputs)} of it are stored)" if outputs else source

    def precompute_command(self, sources: tuple[str, ...], views: int | None) -> str:
        """The command that would make the stores this run lacks."""
        own = (self.target,) if self.spec.is_own_folder else ()  # filled anyway
        return precompute_command(
            self.target,
            sources,
            paths=self.paths,
            augmentation=self.augmentation,
            limit=self.limit,
            views=views,
            unlabelled=[pool.name for pool in self.pools if pool.name not in own],
        )


def precompute_command(
    target: str,
    sources: tuple[str, ...],
    *,
    paths: Paths,
    augmentation: Augmentation,
    limit: int | None,
    views: int | None = None,
    unlabelled: Sequence[str] = (),
) -> str:
    """The command that makes the stores of `sources` for a target's training split, and for pools."""
    jitter = augmentation.color_jitter
    settings = {
        "--views": views,
        "--limit": limit,
        "--seed": augmentation.seed or None,
        "--plan": augmentation.kind,
        "--size": augmentation.side_px,
        "--source-size": augmentation.source_side_px,
        "--clip-frames": augmentation.n_frames,
        "--stride": augmentation.stride,
        "--source-frames": augmentation.source_frames,
        "--source-input": None if augmentation.source_input == RELEASED else augmentation.source_input,
        "--augment": augmentation.augment,
        "--color-jitter": jitter and ",".join(f"{strength:g}" for strength in jitter),
        "--random-erasing": augmentation.random_erasing,
    }
    words = [f"--source {quoted(name)}" for name in sources]
    for network in dict.fromkeys(map(network_of, sources)):
        if (given := paths.weights_of(network)) is not None:
            words.append(f"--weights {quoted(f'{network}={given}')}")
        if (contract := paths.contract_of(network)) is not None:
            words.append(f"{OPTION} {quoted(f'{network}={to_told(contract)}')}")
    words.append(f"--target {quoted(target)}")
    words += [f"{option} {value}" for option, value in settings.items() if value is not None]
    words += [f"--unlabelled {quoted(name)}" for name in unlabelled]
    words += folder_words(paths.data_dir, paths.cache_dir)
    return f"sskt precompute {' '.join(words)}"
