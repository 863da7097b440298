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
    """Settings of which some, the choosers, name entries of registries and so bring in the options of those entries.

    The settings are those of a subclass, completed by the fields of the entries (`completed`): flat, as a recipe or the
    command line gives them. An option that several entries have is the same for all. Entries are looked up when
    settings are resolved, not before, so one that is registered later is like any other.

    Attributes:
        chooser: the name of the setting, a string that is marked as a `Choice`, that names one entry.
        list_choosers: the names of settings, tuples of strings so marked, that each name any number of entries.
        choices: what each chooser names, in settings that are completed.
    """

    chooser: ClassVar[str]
    list_choosers: ClassVar[tuple[str, ...]] = ()
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @classmethod
    def entries(cls, chooser: str = "") -> Mapping[str, type[Options]]:
        """What can be chosen with a chooser; unset: with the one that names one entry."""
        return choice_of(cls.model_fields[chooser or cls.chooser]).registry

    @classmethod
    def options(cls) -> dict[str, dict[str, FieldInfo]]:
        found: dict[str, dict[str, FieldInfo]] = {}
        for chooser in (cls.chooser, *cls.list_choosers):
            for choice, entry in cls.entries(chooser).items():
                for name, field in entry.model_fields.items():
                    found.setdefault(name, {})[choice] = field
        return found

    @classmethod
    def chooser_of(cls, option: str) -> str:
        choosers = (cls.chooser, *cls.list_choosers)
        owners = (c for c in choosers for entry in cls.entries(c).values() if option in entry.model_fields)
        return next(owners, "")

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> type[Self]:
        choices = {}
        for chooser in (cls.chooser, *cls.list_choosers):
            named = values.get(chooser, cls.model_fields[chooser].default)
            names = [named] if chooser == cls.chooser else named
            known = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
            if not known or any(name not in cls.entries(chooser) for name in names):
                # The choice will be refused, and what else is wrong is told with it.
                given = {name: next(iter(of.values())) for name, of in cls.options().items() if name in values}
                return cast(type[Self], _with(cls, given))
            choices[chooser] = tuple((name, cls.entries(chooser)[name]) for name in names)
        return cast(type[Self], _completed(cls, tuple(choices.items())))

    @classmethod
    def unknown_setting(cls, name: str, where: str) -> ConfigError:
        if name not in (options := cls.options()):
            return super().unknown_setting(name, where)
        chooser, owners = cls.chooser_of(name), ", ".join(options[name])
        if chooser == cls.chooser:
            (choice,) = cls.choices[chooser]
            return ConfigError(f"{where}.{name}: '{choice}' has no such option; it belongs to {owners}. Leave it out")
        return ConfigError(f"{where}.{name}: belongs to {owners}; choose it with '{chooser}', or leave it out")

    @classmethod
    def owner(cls, name: str) -> str:
        if not cls.choices or name not in (options := cls.options()):
            return ""
        chooser = cls.chooser_of(name)
        owners = [choice for choice in dict.fromkeys(cls.choices[chooser]) if choice in options[name]]
        return f" with {chooser} '{', '.join(owners)}'"

    def chosen(self) -> Options:
        """The entry that `chooser` names, with its options."""
        return self._made(self.entries()[getattr(self, self.chooser)])

    def all_chosen(self, chooser: str) -> list[Options]:
        """The entries that one of `list_choosers` names, in order, with their options."""
        return [self._made(self.entries(chooser)[name]) for name in getattr(self, chooser)]

    def _made(self, entry: type[Options]) -> Options:
        return entry(**{name: value for name, value in self if name in entry.model_fields})

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        try:
            self.chosen()
            for chooser in self.list_choosers:
                self.all_chosen(chooser)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self


@cache
def _completed(
    settings: type[OptionSettings], choices: tuple[tuple[str, tuple[tuple[str, type[Options]], ...]], ...]
) -> type[OptionSettings]:
    fields: dict[str, FieldInfo] = {}
    for chooser, entries in choices:
        own: dict[str, FieldInfo] = {}
        for choice, entry in entries:
            for name, field in entry.model_fields.items():
                if name in settings.model_fields or hasattr(settings, name) or name in fields:
                    raise taken(f"{chooser} '{choice}'", name)
                own.setdefault(name, field)
        fields |= own
    completed = _with(settings, fields)
    completed.choices = {chooser: tuple(choice for choice, _ in entries) for chooser, entries in choices}
    return completed


def taken(where: str, name: str) -> ConfigError:
    """The error for an option with a name that something else has."""
    return ConfigError(f"{where}: the name of the option '{name}' is taken; give it another one")


def _with(settings: type[OptionSettings], fields: Mapping[str, FieldInfo]) -> type[OptionSettings]:
    """Settings with more fields."""
    more: Any = {name: (field.annotation, copy.copy(field)) for name, field in fields.items()}
    return create_model(settings.__name__, __base__=settings, __module__=settings.__module__, **more)
