"""Settings of the docs site: `make docs` builds it into build/docs, without a network, warnings being errors.

The pages are docs/*.md as they are, the README and RESULTS.md; commands are described by click, functions by
their docstrings.
"""

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # autodoc and sphinx-click import this checkout, whatever is installed

project = "sskt"
copyright = "the authors of sskt"  # noqa: A001 - Sphinx's name
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
html_theme = "furo"
html_title = "sskt"
html_copy_source = False
html_show_sourcelink = False
nitpicky = False  # annotations name classes that are no part of the public interface
smartquotes = False  # which would turn --option into a dash
default_role = "literal"  # docstrings put names in single backticks
myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
add_module_names = False

_MOVED = (  # links of files that lie elsewhere, and to what the site shows elsewhere
    (r"\]\(docs/", "]("),
    (r"\]\((?=benchmarks/|examples/)", "](../"),
    (r"\]\(\.\./benchmarks/RESULTS\.md", "](results.md"),
    (r"\]\(\.\./README\.md", "](guide.md"),
    (r"\[([^\]]+)\]\(\.\./[\w/-]+\)", r"\1"),  # a folder, of which the site has no page
)
_MARKUP = re.compile(r"([\\*|_])(?!`)")


def _links_of_the_site(_app: Sphinx, *names_and_text: Any) -> None:
    """Point links that lead out of docs/ to the site's own pages, in a page or a file that one includes."""
    text = names_and_text[-1]
    for link, ours in _MOVED:
        text[0] = re.sub(link, ours, text[0])


def _plain_text(_app: Sphinx, _kind: str, _name: str, _what: object, _how: object, lines: list[str]) -> None:
    """Escape what reStructuredText would take for markup: docstrings are plain text with `names`."""
    lines[:] = [
        "".join(
            part if part.startswith("`") else _MARKUP.sub(r"\\\1", part)
            for part in re.split(r"(`[^`]*`)", line)
        )
        for line in lines
    ]


def _no_mail(_app: Sphinx, _context: object, lines: list[str]) -> None:
    """Keep NAME@pooled in a command's help from becoming an address of mail."""
    lines[:] = [re.sub(r"(?<=\w)@(?=\w)", r"\@", line) for line in lines]


def setup(app: Sphinx) -> None:
    """Register what the pages and docstrings need."""
    app.connect("source-read", _links_of_the_site)
    app.connect("include-read", _links_of_the_site)
    app.connect("autodoc-process-docstring", _plain_text)
    app.connect("sphinx-click-process-description", _no_mail)
    app.connect("sphinx-click-process-options", _no_mail)
