"""A teacher's contract (docs/method.md, promise 8): the input that it expects, its classes, what it returns.

Every field may be left undeclared (None). Values are checked here; `sskt.sources.declared` finds where they
were declared, and `sskt.sources.answers` checks them against real outputs.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from sskt.errors import SourceError

LOGITS, LOG_PROBABILITIES, PROBABILITIES = "logits", "log-probabilities", "probabilities"
SIGMOIDS, EMBEDDING = "sigmoids", "embedding"
RETURNS = (LOGITS, LOG_PROBABILITIES, PROBABILITIES, SIGMOIDS, EMBEDDING)
CONVERTED = (PROBABILITIES, SIGMOIDS)  # converted to logits before they are stored
CHANNELS = ("rgb", "bgr")
INTERPOLATIONS = ("bilinear", "bicubic")
ORDERS = ("target", "numeric", "text", "case-insensitive", "reversed")  # of the target's class names
_PIXELS = ("mean", "std", "range")  # one statement: declaring any of them declares all three
_UNIT = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Contract:
    """What is declared about one teacher; None means undeclared.

    The network's input is (x - mean) / std, where x are pixels scaled to `range`. `mean` and `std` are in the
    order of `channels` and in units of `range`. Raises SourceError for an invalid value.
    """

    mean: tuple[float, ...] | None = None  # three numbers
    std: tuple[float, ...] | None = None
    range: tuple[float, float] | None = None  # (0, 1), (0, 255), (-1, 1)
    channels: str | None = None  # one of CHANNELS
    interpolation: str | None = None  # one of INTERPOLATIONS, used if images are resized for it
    size: int | None = None  # side in pixels
    crop: str | None = None  # for the record: a source sees the crop that the student sees
    classes: tuple[str, ...] | str | None = None  # names in the order of its outputs, or one of ORDERS
    returns: str | None = None  # one of RETURNS
    prompts: tuple[str, ...] | None = None  # of a zero-shot classifier: texts in which {} is a class's name

    def __post_init__(self) -> None:
        _require_word("channels", self.channels, CHANNELS)
        _require_word("interpolation", self.interpolation, INTERPOLATIONS)
        _require_word("returns", self.returns, RETURNS)
        if isinstance(self.classes, str):
            _require_word("classes", self.classes, ORDERS)
        elif self.classes is not None:
            _require_names(self.classes)
        for prompt in self.prompts or ():
            if prompt.count("{}") != 1:
                raise SourceError(f"prompts has {prompt!r}, expected text with one {{}} for the class's name")
        if self.size is not None and self.size < 1:
            raise SourceError(f"size is {self.size}, expected a side of at least 1 pixel")
        if (self.mean is None) != (self.std is None):
            given, lacking, neutral = ("mean", "std", 1) if self.std is None else ("std", "mean", 0)
            raise SourceError(f"{given} is given without {lacking}; give both, {lacking} {neutral} for none")
        _require_pixels(self.mean, self.std, self.range)

    @classmethod
    def from_dict(cls, declared: Mapping[str, Any]) -> Self:
        """A contract from plain data: numbers or lists of three, words, and a list of names as classes.

        Raises SourceError for an unknown field or a value of another type.
        """
        known = [field.name for field in fields(cls)]
        for name in declared:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                meant = f", did you mean {near[0]}" if near else ""
                raise SourceError(
                    f"{name!r} is no field of a contract{meant}; expected some of {', '.join(known)}"
                )
        return cls(**{name: _read(name, value) for name, value in declared.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """The declared fields as plain data that `from_dict` reads."""
        declared = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in declared.items()
            if value is not None
        }

    def over(self, other: Contract) -> Contract:
        """Complete this contract with what only `other` declares; mean, std and range go together."""
        declared = {name: value for name, value in _values(self).items() if value is not None}
        rest = {
            name: value
            for name, value in _values(other).items()
            if not (name in _PIXELS and self.declares_pixels)
        }
        return Contract(**{**rest, **declared})

    @property
    def declares_pixels(self) -> bool:
        """Whether mean, std or range is declared."""
        return any(getattr(self, name) is not None for name in _PIXELS)

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and std for pixels in 0..1, whatever range they are declared in; None if undeclared."""
        if not self.declares_pixels:
            return None
        low, high = self.range or _UNIT
        mean, std = self.mean or (0.0,) * 3, self.std or (1.0,) * 3
        if (low, high) == _UNIT:  # exactly as declared, to the last bit
            return mean, std
        return tuple((m - low) / (high - low) for m in mean), tuple(s / (high - low) for s in std)

    def differs_from(self, other: Contract) -> list[tuple[str, str, str]]:
        """What both declare differently, as text: (what, this contract's value, the other's)."""
        values, other_values = _values(self), _values(other)
        differing = [
            (name, shown(value), shown(other_values[name]))
            for name, value in values.items()
            if name not in _PIXELS and None not in (value, other_values[name]) and value != other_values[name]
        ]
        pair, other_pair = self.normalisation, other.normalisation
        if pair is not None and other_pair is not None and pair != other_pair:
            texts = " and ".join(map(shown, pair)), " and ".join(map(shown, other_pair))
            differing.insert(0, ("mean and std", *texts))
        return differing


def as_logits(outputs: Tensor, returns: str) -> Tensor:
    """Convert a network's outputs (N, K) to float32 logits (N, K), exactly where float32 can hold them.

    Probabilities p, times any factor: log p - log sum p. Independent probabilities (sigmoids):
    log p - log(1 - p). Values that the outputs' dtype rounds to 0 or 1 are moved to the nearest number
    inside. Rows that are not probabilities become NaN. Logits and log-probabilities are unchanged: a softmax
    at any temperature is the same for both.
    """
    z = outputs.float()
    if returns not in CONVERTED:
        return z
    single, given = torch.finfo(torch.float32), torch.finfo(outputs.dtype)
    eps = max(given.eps, single.eps)
    # half precision also has subnormal numbers, which are normal ones in float32
    least = max(given.tiny * given.eps, single.tiny)
    slack = 4 * eps
    if returns == PROBABILITIES:
        total = z.sum(dim=1, keepdim=True)
        # relative to the row's sum, since some networks give percent
        converted = z.clamp(min=least).log() - total.log()
        wrong = ((z < -slack * total) | ~(total > 0)).any(dim=1, keepdim=True)
    else:
        p = z.clamp(min=least, max=1 - eps / 2)
        converted = p.log() - torch.log1p(-p)
        wrong = ((z < -slack) | (z > 1 + slack)).any(dim=1, keepdim=True)
    return torch.where(wrong | z.isnan(), torch.nan, converted)


def sentence(contract: Contract) -> str:
    """Summarise what is declared, e.g. "mean 0.5, std 0.5, returns probabilities"."""
    return ", ".join(
        f"{name} {shown(value)}" for name, value in _values(contract).items() if value is not None
    )


def assumed(contract: Contract) -> str:
    """Describe what is assumed because nothing declares it; "" if everything is declared."""
    missing = []
    if not contract.declares_pixels:
        missing.append("ImageNet's mean and std of pixels in 0..1")
    if contract.channels is None:
        missing.append("RGB")
    if contract.returns is None:
        missing.append("logits")
    if contract.classes is None and contract.returns != EMBEDDING:
        missing.append("classes unknown")
    return ", ".join(missing)


def shown(value: Any) -> str:
    """A field's value for a message."""
    if isinstance(value, tuple) and value and isinstance(value[0], str):
        return f"{', '.join(value[:3])}, ... ({len(value)})" if len(value) > 3 else ", ".join(value)
    if isinstance(value, tuple):
        numbers = [f"{number:g}" for number in value]
        return numbers[0] if len(numbers) == 3 and len(set(numbers)) == 1 else "/".join(numbers)
    return str(value)


def _values(contract: Contract) -> dict[str, Any]:
    return {field.name: getattr(contract, field.name) for field in fields(contract)}


def _read(name: str, value: Any) -> Any:
    """Read one field from plain data or from the text of a command line."""
    if name in ("mean", "std"):
        numbers = _numbers(name, value)
        return numbers * 3 if len(numbers) == 1 else numbers
    if name == "range":
        return _numbers(name, value)
    if name == "size":
        whole = _numbers(name, value)
        if len(whole) != 1 or whole[0] != int(whole[0]):
            raise SourceError(f"size is {value!r}, expected one whole number of pixels")
        return int(whole[0])
    if name in ("classes", "prompts") and isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(str(item) for item in value)
    if not isinstance(value, str):
        raise SourceError(f"{name} is {value!r}, expected text")
    return (value,) if name == "prompts" else value


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    """Read a number, a list of numbers, or text such as 0.485/0.456/0.406."""
    parts = value.split("/") if isinstance(value, str) else value
    parts = list(parts) if isinstance(parts, Sequence) else [parts]
    try:
        if any(isinstance(part, bool) for part in parts):
            raise TypeError
        return tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise SourceError(f"{name} is {value!r}, expected numbers such as 0.5 or 0.485/0.456/0.406") from None


def _require_word(name: str, value: str | None, words: tuple[str, ...]) -> None:
    if value is not None and value not in words:
        raise SourceError(f"{name} is {value!r}, expected one of {', '.join(words)}")


def _require_names(classes: tuple[str, ...]) -> None:
    if not classes:
        raise SourceError("classes holds no name; leave it out, or name every output")
    seen: set[str] = set()
    for name in classes:
        if name in seen:
            raise SourceError(f"classes names {name!r} twice, expected a name for each output")
        seen.add(name)


def _require_pixels(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, levels: tuple[float, ...] | None
) -> None:
    """Raise SourceError for numbers that cannot be a normalisation."""
    low, high = (levels if levels is not None and len(levels) == 2 else (math.nan,) * 2) if levels else _UNIT
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise SourceError(f"range is {shown(levels)}, expected the lowest and the highest value, e.g. 0/255")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and (len(values) != 3 or not all(map(math.isfinite, values))):
            raise SourceError(f"{name} is {shown(values)}, expected one number or three, for R, G and B")
    if std is not None and min(std) <= 0:
        raise SourceError(f"std is {shown(std)}, expected numbers above 0; 1 divides by nothing")
    width = high - low
    if mean is not None and not (low - width <= min(mean) and max(mean) <= high + width):
        raise SourceError(
            f"mean is {shown(mean)}, which no pixels in {low:g}..{high:g} have; say in which range they are, "
            f"e.g. range 0/255"
        )
    if std is not None and max(std) > 5 * width:
        raise SourceError(
            f"std is {shown(std)}, which no pixels in {low:g}..{high:g} have; say in which range they are, "
            f"e.g. range 0/255"
        )


NOTHING = Contract()  # is declared
