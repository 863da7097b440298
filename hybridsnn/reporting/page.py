"""Pages from templates: each one file that needs no other, no network and no script."""

from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment, FunctionLoader, StrictUndefined

from hybridsnn.reporting.quantities import duration, signed, size
from hybridsnn.reporting.tables import as_text, numeric_columns


def render(template: str, **values: Any) -> str:
    """A page from one of the templates beside this file; whatever is text in `values` is escaped."""
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
    """What the macro of the same name sets as a table: text, and which columns are flush right."""
    text = as_text(table)
    return {
        "caption": caption,
        "columns": list(zip(text.columns, numeric_columns(table), strict=True)),
        "rows": text.to_numpy().tolist(),
    }
