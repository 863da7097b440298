"""HTML pages from templates: each a single file, without scripts, that opens offline."""

from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment, FunctionLoader, StrictUndefined

from hybridsnn.reporting.quantities import duration, signed, size
from hybridsnn.reporting.tables import as_text, numeric_columns


def render(template: str, **values: Any) -> str:
    """A page from one of the templates in this folder; text in `values` is escaped."""
    environment = Environment(
        loader=FunctionLoader(lambda name: files(__package__).joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "size": size, "signed": signed}
    return environment.get_template(template).render(**values)


def grid(table: pd.DataFrame, caption: str) -> dict[str, Any]:
    """The input of the template macro of the same name: cells as text, and which columns are right-aligned."""
    text = as_text(table)
    return {
        "caption": caption,
        "columns": list(zip(text.columns, numeric_columns(table), strict=True)),
        "rows": text.to_numpy().tolist(),
    }
