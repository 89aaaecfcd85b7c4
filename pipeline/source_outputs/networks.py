"""Ask live networks about a batch: all are started before one is waited for."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from sskt.sources import BatchStatisticsSource, FrozenSource

_MOST_UNCHECKED = 100  # batches, for callers who never ask for a check


# a network that can be run, frozen or as in the released code; its rows may be those of several sources,
# outputs of that network
LiveSource = FrozenSource | BatchStatisticsSource


class LiveNetworks:
    """Runs networks for a student's steps, and checks that their rows are finite: on a CPU at once, on CUDA
    where `check` is called, since a look at them waits for the device.
    """

    def __init__(self) -> None:
        self._unchecked: dict[FrozenSource, list[list[torch.Tensor]]] = {}  # of each batch its maxima

    def rows(self, networks: Iterable[LiveSource], pixels: torch.Tensor) -> dict[LiveSource, torch.Tensor]:
        """Every network's rows, float16 (N, K), for uint8 (N, 3, H, W) or (N, 3, D, H, W). Raises
        NonFiniteLogitsError on a CPU.
        """
        started = {
            live: live.submit(live.input_map.pick(pixels), in_order=True) for live in dict.fromkeys(networks)
        }
        rows = {live: wait() for live, wait in started.items()}
        for live, logits in rows.items():
            if not isinstance(live, FrozenSource):
                continue
            if logits.device.type == "cpu":
                live.require_finite(logits)
            else:
                maxima = [logits[:, at].abs().amax(dim=1) for _, at in live.source.with_columns()]
                self._unchecked.setdefault(live, []).append(maxima)
        if any(len(batches) >= _MOST_UNCHECKED for batches in self._unchecked.values()):
            self.check()
        return rows

    def check(self) -> None:
        """Raise NonFiniteLogitsError if a row since the last call is not finite, or larger than a sound
        source could give; waits for the device if there are such rows.
        """
        unchecked, self._unchecked = self._unchecked, {}
        for live, batches in unchecked.items():
            for (part, _), maxima in zip(live.source.with_columns(), zip(*batches, strict=True), strict=True):
                live.require_finite_output(torch.cat(maxima)[:, None], part)
