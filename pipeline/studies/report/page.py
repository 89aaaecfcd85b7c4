"""Fill a template, and write the page: one file of HTML that needs no other, and no network."""

from __future__ import annotations

import jinja2

from cache import Location
from pipeline.runtime import write_result
from sskt.errors import shown


def write_page(path: Location, template: str, **values: object) -> None:
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
    write_result(path, shown(text, keep="\n").encode(), "choose another file")


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _megabytes(n_bytes: int | None) -> str:
    return "-" if n_bytes is None else f"{n_bytes / 1e6:,.1f} MB"
