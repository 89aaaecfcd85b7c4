"""Check what a network returns by its outputs for a few real images, never for black ones.

Some outputs cannot be learnt from, and are rejected with a remedy. Others only look odd and get a remark with
the figure, since a sound teacher may be confident, or the user may want an untrained one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sskt.errors import SourceError
from sskt.sources.contract import (
    LOG_PROBABILITIES,
    LOGITS,
    PROBABILITIES,
    SIGMOIDS,
    as_logits,
)

_SUM_SLACK = 5e-3  # relative; half precision rounds by that much
_SATURATED_AT = 3.0  # the paper's temperature: a row is saturated if even at this T it is one class
_SATURATED_NATS = 1e-3
_UNIFORM_SHARE = 0.99  # of log K
_SATURATED_SHARE = 0.95  # of the rows
_MIN_ROWS = 4
_CHECK = "check its mean and std, and whether its logits are scaled"


def require_known_kind(outputs: Tensor, declared: str | None, name: str) -> None:
    """Raise SourceError if rows (n, K), as returned by a network, contradict what is declared about them or
    cannot be learnt from as logits. Rows that are not finite are ignored.

    `declared` is one of `sskt.sources.contract.RETURNS`, or None if nothing is declared.
    """
    rows = finite_rows(outputs)
    if not len(rows):
        return
    n, n_classes = rows.shape
    if n_classes == 1:
        raise SourceError(
            f"{name} returns one number per image, whose softmax is always 1, so it teaches nothing; for a "
            f"yes-no answer z export torch.cat([torch.zeros_like(z), z], dim=1), whose softmax is (1 - p, p)"
        )
    seen, tried = returned_kind(rows), f"all {n} rows tried on real images"
    low, high = float(rows.min()), float(rows.max())
    if declared == PROBABILITIES and not _adds_up(rows):
        raise SourceError(
            f"{name} is declared to return probabilities, but {tried} lie in {low:.3g}..{high:.3g} and do "
            f"not add up to one number; declare returns={seen}"
        )
    if declared == SIGMOIDS and (low < -_SUM_SLACK or high > 1 + _SUM_SLACK):
        raise SourceError(
            f"{name} is declared to return sigmoids, but {tried} lie in {low:.3g}..{high:.3g}, not in 0..1; "
            f"declare returns={seen}"
        )
    if seen == PROBABILITIES and declared in (None, LOGITS, LOG_PROBABILITIES):
        total = float(rows.sum(dim=1).mean())
        factor = "" if math.isclose(total, 1, rel_tol=2 * _SUM_SLACK) else f" times {total:.4g}"
        raise SourceError(
            f"{name} returns probabilities{factor}, not {declared or LOGITS}: {tried} are positive and add "
            f"up to {total:.4g}; declare it with --contract {name}=returns=probabilities, and their "
            f"logarithms are stored"
        )
    if seen == SIGMOIDS and declared is None:
        raise SourceError(
            f"{name} seems to return sigmoids: {tried} lie in {low:.3g}..{high:.3g} and do not add up to 1; "
            f"declare --contract {name}=returns=sigmoids, and log p/(1-p) is stored, or returns=logits if "
            f"they are logits all the same"
        )


def remarks_on(outputs: Tensor, declared: str | None, name: str) -> list[str]:
    """Describe, in one sentence each, what is odd about rows (n, K) that `require_known_kind` accepts."""
    rows = finite_rows(outputs)
    n = len(rows)
    if n < _MIN_ROWS:
        return []
    seen, remarks = returned_kind(rows), []
    if seen == LOG_PROBABILITIES and declared != LOG_PROBABILITIES:
        remarks.append(f"{name} returns log-probabilities, which serve as logits as they are")
    if declared == LOG_PROBABILITIES and seen != LOG_PROBABILITIES:
        remarks.append(
            f"{name} is declared to return log-probabilities and returns {seen}: the exponentials of its "
            f"rows do not add up to 1; they are taken as logits"
        )
    if declared == SIGMOIDS and seen == PROBABILITIES:
        remarks.append(f"{name} is declared to return sigmoids, and each of its {n} rows tried adds up to 1")
    if declared == LOGITS and seen == SIGMOIDS:
        remarks.append(f"{name} is declared to return logits, and all of {n} rows tried lie in 0..1")
    logits = as_logits(rows, declared or LOGITS)
    return remarks + _remarks_on_logits(logits, name)


def returned_kind(rows: Tensor) -> str:
    """Guess which of `sskt.sources.contract.RETURNS` finite rows (n, K), K > 1, are; probabilities may be
    scaled by a factor that all rows share.
    """
    total = float(rows.sum(dim=1).mean())
    if _adds_up(rows) and (math.isclose(total, 1, rel_tol=2 * _SUM_SLACK) or _steadier_than_entries(rows)):
        return PROBABILITIES
    if bool((rows >= 0).all()) and bool((rows <= 1).all()):
        return SIGMOIDS
    if bool((rows.logsumexp(dim=1).abs() <= _SUM_SLACK).all()):
        return LOG_PROBABILITIES
    return LOGITS


def _adds_up(rows: Tensor) -> bool:
    """Whether no entry is negative and every row has the same sum."""
    sums = rows.sum(dim=1)
    total = float(sums.mean())
    slack = _SUM_SLACK * total
    return total > 0 and bool((rows >= 0).all()) and bool(((sums - total).abs() <= slack).all())


def _steadier_than_entries(rows: Tensor) -> bool:
    """Whether sums vary far less between rows than entries do, which logits that hardly vary do not show."""
    entry_range = float((rows.amax(dim=0) - rows.amin(dim=0)).max())
    sums = rows.sum(dim=1)
    return float(sums.max() - sums.min()) < 0.05 * entry_range


def _remarks_on_logits(logits: Tensor, name: str) -> list[str]:
    """Report rows that carry no information: all alike, near uniform or saturated."""
    n, n_classes = logits.shape
    scale = max(1e-6, float(logits.abs().max()))
    if float((logits - logits[:1]).abs().max()) <= 1e-4 * scale:
        return [f"{name} says the same of all {n} images tried: check what it wants to see"]
    entropy = _entropy(logits)
    if bool((entropy > _UNIFORM_SHARE * math.log(n_classes)).all()):
        share = float(entropy.mean()) / math.log(n_classes)
        remark = (
            f"{name} hardly tells classes apart: the entropy of its softmax is {share:.1%} of log "
            f"{n_classes} on {n} images tried"
        )
        return [f"{remark}; {_CHECK}"]
    saturated = _entropy(logits / _SATURATED_AT) < _SATURATED_NATS
    if float(saturated.float().mean()) >= _SATURATED_SHARE:
        remark = (
            f"{name} is saturated: {int(saturated.sum())} of {n} rows tried are one class even at T = "
            f"{_SATURATED_AT:g} (values up to {scale:.3g}), so they teach no more than a label"
        )
        return [f"{remark}; {_CHECK}"]
    return []


def _entropy(logits: Tensor) -> Tensor:
    """Entropy of each row's softmax, in nats: (n,)."""
    log_p = logits.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def finite_rows(outputs: Tensor) -> Tensor:
    """The rows of (n, K) outputs without a NaN or an infinity, float32 on the CPU."""
    rows = outputs.detach().float().cpu()
    return rows[torch.isfinite(rows).all(dim=1)]
