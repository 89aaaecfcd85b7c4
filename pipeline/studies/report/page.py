"""Fill a template, and write the page: one file of HTML that needs no other, and no network."""

from __future__ import annotations

from pathlib import Path

import jinja2

from cache import write_durably
from sskt.errors import RunError, shown


def write_page(path: Path, template: str, **values: object) -> None:
    """Write a template of this package, filled, to `path`; names in it are escaped. Raises RunError if the
    file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.studies.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "count": _count, "percent": _percent, "mb": _megabytes}
    text = environment.get_template(template).render(values)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, shown(text, keep="\n").encode())
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error}); choose another file"
        ) from error


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _megabytes(n_bytes: int | None) -> str:
    return "-" if n_bytes is None else f"{n_bytes / 1e6:,.1f} MB"
