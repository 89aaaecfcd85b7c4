"""Methods by name: what one training step minimises. A new one is one file and one line here."""

from __future__ import annotations

from dataclasses import fields

from sskt.errors import SettingError
from sskt.methods.config import LabelConfig, SourceConfig, TaughtConfig
from sskt.methods.dml import Dml
from sskt.methods.graph import Graph
from sskt.methods.kd import Kd
from sskt.methods.maxl import AUXILIARY, Maxl
from sskt.methods.method import Losses, Method, MethodConfig, Mixture, Parts, require_choice, require_range
from sskt.methods.pretext import PRETEXT_METHODS, Pretext
from sskt.methods.scratch import Scratch
from sskt.methods.sskt import GATES, GRADIENT_COSINE, Sskt

__all__ = [
    "AUXILIARY",
    "GATES",
    "GRADIENT_COSINE",
    "METHODS",
    "PRETEXT_METHODS",
    "Dml",
    "Graph",
    "Kd",
    "LabelConfig",
    "Losses",
    "Maxl",
    "Method",
    "MethodConfig",
    "Mixture",
    "Parts",
    "Pretext",
    "Scratch",
    "SourceConfig",
    "Sskt",
    "TaughtConfig",
    "method_named",
    "readers",
    "register",
    "require_choice",
    "require_range",
]

METHODS: dict[str, type[Method]] = {}


def register(name: str, method: type[Method]) -> None:
    """Make a method known by its name on the command line. Raises ValueError for a name that is taken."""
    if name in METHODS:
        raise ValueError(f"the method {name} is registered already")
    METHODS[name] = method


register("sskt", Sskt)
register("scratch", Scratch)
register("kd", Kd)
register("dml", Dml)
register("maxl", Maxl)
register("graph", Graph)


def method_named(name: str) -> type[Method]:
    """The method, or pretext task, of a name. Raises SettingError for one that is unknown."""
    if name in PRETEXT_METHODS:
        return PRETEXT_METHODS[name]
    if name not in METHODS:
        raise SettingError("method", f"is {name!r}, expected one of {', '.join(METHODS)}")
    return METHODS[name]


def readers(setting: str) -> list[str]:
    """The methods whose config has a setting, in the order in which they were registered."""
    return [name for name, method in METHODS.items() if setting in (f.name for f in fields(method.Config))]
