"""Look-up by name in a plain dict, with a suggestion when the name is unknown."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

from hybridsnn.errors import ConfigError

Entry = TypeVar("Entry")


def unknown(what: str, name: str, choices: Mapping[str, object] | list[str]) -> ConfigError:
    """The error for a name that is not among `choices`: names the nearest one and lists all.

    Example: `method: unknown 'stbd'. Did you mean 'stdb'? Choices: linear, stdb`
    """
    near = difflib.get_close_matches(name, list(choices), n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return ConfigError(f"{what}: unknown '{name}'.{hint} Choices: {', '.join(sorted(choices))}")


def look_up(registry: Mapping[str, Entry], name: str, what: str) -> Entry:
    """The entry called `name`.

    Args:
        registry: the plain dict at the foot of a module.
        name: what the user asked for.
        what: how the setting is called, for the message.

    Raises:
        ConfigError: if there is no such entry.
    """
    try:
        return registry[name]
    except KeyError:
        raise unknown(what, name, registry) from None
