"""probe and probe:SOURCE+SOURCE: not a network, but a linear probe fitted on the stored rows of others."""

from __future__ import annotations

from pathlib import Path

from sskt.errors import SourceError
from sskt.sources.contract import Contract
from sskt.sources.source import Kind, Source, SourceSpec


class ProbeKind(Kind):
    """A teacher of the target's own classes, fitted when a run begins (`sskt.probe`)."""

    prefix, forms = "probe", ("probe", "probe:SOURCE+SOURCE")
    weights_note = "fitted on the stored rows of the sources"
    must_be_named = is_fitted = True

    def parse(self, name: str) -> SourceSpec:
        """See `Kind.parse`."""
        return self.unopened(name, "linear")

    def open(self, name: str, weights: Path, told: Contract) -> Source:  # noqa: ARG002
        """Raises SourceError: there is nothing to open."""
        raise SourceError(
            f"{name} is no network: it is fitted on the stored rows of other sources when `sskt train "
            f"--source {name}` begins; precompute those"
        )

    def weights_path(self, name: str, weights_dir: Path) -> Path:
        """A file that does not exist."""
        return weights_dir / f"{name}.none"
