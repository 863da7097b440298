"""Modules of the user's own, which add entries to registries before commands are made from them."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from hybridsnn.errors import ConfigError


def _load(ctx: click.Context, param: click.Parameter, names: Sequence[str]) -> None:
    for name in names:
        try:
            _import(name)
        except Exception as error:  # whatever the module raises: it is the user's
            raise ConfigError(
                f"--plugin {name}: cannot be imported ({type(error).__name__}: {error}); "
                "give a Python file, or the name of a module that Python finds"
            ) from error


def _import(name: str) -> ModuleType:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name).resolve()
    module_name = f"hybridsnn_plugin_{path.stem}"
    if (loaded := sys.modules.get(module_name)) is not None and loaded.__file__ == str(path):
        return loaded
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # there is a loader for the suffix
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # where types that are named in strings are looked up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


plugin_option: Callable[[Any], Any] = click.option(
    "--plugin",
    metavar="MODULE",
    multiple=True,
    expose_value=False,
    envvar="HYBRIDSNN_PLUGINS",
    show_envvar=True,
    callback=_load,
    help="A Python file or module of yours that adds learning rules, balancers, networks and so on. Comes before the "
    "command; can be repeated.",
)
