"""The error of a run whose numbers are not finite any more, or implausibly large."""

from __future__ import annotations

from pipeline.train.config import TrainConfig
from sskt.errors import RunError


class DivergedError(RunError):
    """A loss, a weight or a test logit is not finite, or larger than in any sound network; `found` says
    where, and lists the samples of the step.
    """

    def __init__(self, message: str, found: dict[str, object]) -> None:
        super().__init__(message)
        self.found = found


def diverged(
    config: TrainConfig, what: str, where: str, *, epoch: int, step: int, ids: list[int]
) -> DivergedError:
    """The error for a run of `config`, with advice."""
    advice = [f"lower --lr (it is {config.lr:g})"]
    if config.sources:
        advice.append(f"--alpha (it is {config.alpha:g})")
    if config.clip_norm is None:
        advice.append("add --clip-norm 1")
    if config.amp != "fp32":
        advice.append("try --amp fp32, which shows whether the precision is at fault")
    return DivergedError(
        f"{config.target}: {what} in epoch {epoch}, {where}; {', or '.join(advice)}",
        {"what": what, "epoch": epoch, "step": step, "ids": ids},
    )
