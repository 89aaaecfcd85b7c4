"""Students by reference, package.module:function: whatever `torch.nn.Module` that function returns."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from sskt.errors import RunError
from sskt.students.automatic import wrap_module
from sskt.students.backbone import Backbone
from sskt.students.imported import import_function, importing_from_here, in_short

_FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_RESERVED = ("own:", "timm:")  # which precede other names of students


def is_reference(model: str) -> bool:
    """Whether a student's name is package.module:function."""
    return _FORM.fullmatch(model) is not None and not model.startswith(_RESERVED)


def build_referenced(model: str, sizes: Sequence[tuple[int, ...]]) -> Backbone:
    """The backbone that a function makes, with the weights that it gives; for `sizes` see `wrap_module`.
    Raises RunError if the function cannot be imported, fails, or returns no module.
    """
    function = import_function(model)
    try:
        with importing_from_here():
            made = function()
    except Exception as error:
        raise RunError(
            f"--model {model}: the function failed ({in_short(error)}); it is called without arguments, and "
            f"expected to return a torch.nn.Module"
        ) from error
    if not isinstance(made, nn.Module):
        raise RunError(
            f"--model {model}: the function returned a {type(made).__name__}, expected a torch.nn.Module"
        )
    return wrap_module(made, sizes, f"--model {model}")
