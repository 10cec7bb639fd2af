"""The pages' templates, which lie beside this file."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from kd3.version import __version__


def rendered(name: str, **values: Any) -> str:
    """Return a page's HTML."""
    here = files("kd3.run_report")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_unbroken,
        loader=FunctionLoader(lambda part: (here / part).read_text(encoding="utf-8")),
    )
    style = Markup((here / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(name).render(version=__version__, style=style, **values)


def _unbroken(value: Any) -> Any:
    """Join percent signs and numbers in a line with unbreakable spaces."""
    is_line = isinstance(value, str) and not isinstance(value, Markup) and "\n" not in value
    return value.replace(" %", "\u00a0%") if is_line else value
