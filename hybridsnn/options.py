"""Options of what is chosen by name: declared once, as fields of the entry itself.

An entry of a registry that has options is a class, `class Mine(Options)`, and each of its fields is an option: a
keyword of `Mine(...)` in Python, an option of the command, a key in a recipe. Type, default, bounds and help stand at
the field: `strength: float = Field(1.0, gt=0, description="How strong.")`.
"""

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Self, cast

from pydantic import BaseModel, ConfigDict, ValidationError, create_model, model_validator
from pydantic.fields import FieldInfo

from hybridsnn.config import StageConfig, choice_of, problems
from hybridsnn.errors import ConfigError
from hybridsnn.registry import unknown


class Options(BaseModel):
    """Base of the entries of a registry that have options; frozen, so that one object can serve many runs.

    Raises:
        ConfigError: for an option that is unknown, of another type (as strict as JSON) or out of its bounds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            where, names = type(self).__name__, list(type(self).model_fields)
            raise problems(error, where, lambda name: unknown(where, name, names)) from None


class OptionSettings(StageConfig):
    """Settings of which one, the chooser, names an entry of a registry and so brings in the options of that entry.

    The settings are those of a subclass, completed by the fields of the entry (`completed`): flat, as a recipe or the
    command line gives them. Entries are looked up when settings are resolved, not before, so one that is registered
    later is like any other.

    Attributes:
        chooser: the name of that setting, a string that is marked as a `Choice`.
        choice: what it names, in settings that are completed.
    """

    chooser: ClassVar[str]
    choice: ClassVar[str] = ""

    @classmethod
    def entries(cls) -> Mapping[str, type[Options]]:
        """What can be chosen."""
        return choice_of(cls.model_fields[cls.chooser]).registry

    @classmethod
    def options(cls) -> dict[str, dict[str, FieldInfo]]:
        found: dict[str, dict[str, FieldInfo]] = {}
        for choice, entry in cls.entries().items():
            for name, field in entry.model_fields.items():
                found.setdefault(name, {})[choice] = field
        return found

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> type[Self]:
        choice, entries = values.get(cls.chooser, cls.model_fields[cls.chooser].default), cls.entries()
        if isinstance(choice, str) and choice in entries:
            return cast(type[Self], _completed(cls, choice, entries[choice]))
        # The choice will be refused, and what else is wrong is told with it.
        given = {name: next(iter(of.values())) for name, of in cls.options().items() if name in values}
        return cast(type[Self], _with(cls, given))

    @classmethod
    def unknown_setting(cls, name: str, where: str) -> ConfigError:
        if name not in (options := cls.options()):
            return super().unknown_setting(name, where)
        return ConfigError(
            f"{where}.{name}: '{cls.choice}' has no such option; it belongs to {', '.join(options[name])}. Leave it out"
        )

    @classmethod
    def owner(cls, name: str) -> str:
        return f" with {cls.chooser} '{cls.choice}'" if cls.choice and name in cls.options() else ""

    def chosen(self) -> Options:
        """The entry with its options."""
        entry = self.entries()[getattr(self, self.chooser)]
        return entry(**{name: value for name, value in self if name in entry.model_fields})

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        try:
            self.chosen()
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self


@cache
def _completed(settings: type[OptionSettings], choice: str, entry: type[Options]) -> type[OptionSettings]:
    for name in entry.model_fields:
        if name in settings.model_fields or hasattr(settings, name):
            raise taken(f"{settings.chooser} '{choice}'", name)
    completed = _with(settings, entry.model_fields)
    completed.choice = choice
    return completed


def taken(where: str, name: str) -> ConfigError:
    """The error for an option with a name that something else has."""
    return ConfigError(f"{where}: the name of the option '{name}' is taken; give it another one")


def _with(settings: type[OptionSettings], fields: Mapping[str, FieldInfo]) -> type[OptionSettings]:
    """Settings with more fields."""
    more: Any = {name: (field.annotation, copy.copy(field)) for name, field in fields.items()}
    return create_model(settings.__name__, __base__=settings, __module__=settings.__module__, **more)
