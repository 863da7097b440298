"""Typed settings: unknown keys refused, every problem named at once, hashed without the fields that only say where."""

import hashlib
import json
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from hybridsnn.errors import ConfigError
from hybridsnn.registry import unknown


class StageConfig(BaseModel):
    """Base of every stage's settings.

    Field descriptions become the help of the command line. A field that only says *where* something lies, and so does
    not identify a result, is marked `Field(json_schema_extra={"location": True})` and left out of the hash.

    Attributes:
        follows: settings whose default follows from another setting, and which that is; see `own_defaults`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    follows: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def own_defaults(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Defaults that follow from what is set, with which `resolve` fills in what is not."""
        return {}

    @classmethod
    def options(cls) -> dict[str, dict[str, FieldInfo]]:
        """Settings that belong to what is chosen: by name, and then by the choice they belong to."""
        return {}

    @classmethod
    def chooser_of(cls, option: str) -> str:
        """The setting that chooses what such a setting belongs to."""
        return ""

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> type[Self]:
        """These settings with the options of what `values` choose."""
        return cls

    @classmethod
    def unknown_setting(cls, name: str, where: str) -> ConfigError:
        """The error for a setting that there is not."""
        return unknown(where, name, list(cls.model_fields))

    @classmethod
    def owner(cls, name: str) -> str:
        """In words, for messages, what has this setting if not all have it."""
        return ""


Config = TypeVar("Config", bound=StageConfig)


@dataclass(frozen=True, eq=False)  # hashed by identity: `Annotated[...] | None` hashes it, and a dict cannot be
class Choice:
    """Marks a string setting as a name in a registry: `balance: Annotated[str, Choice(BALANCERS, "balancer")]`.

    Args:
        registry: the plain dict the name is looked up in, when a value is validated and not before.
        what: what the entries are called, for messages where the setting's own name is not known.
        fits: which of the entries can be chosen here.
    """

    registry: Mapping[str, Any] = field(repr=False)
    what: str = "name"
    fits: Callable[[Any], bool] = field(default=lambda entry: True, repr=False)

    @property
    def names(self) -> list[str]:
        """What can be chosen."""
        return [name for name, entry in self.registry.items() if self.fits(entry)]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def _known(self, name: str) -> str:
        if name not in self.registry:
            problem = str(unknown(self.what, name, self.names))
            raise PydanticCustomError("unknown_choice", "{problem}", {"problem": problem, "choices": self.names})
        if name not in self.names:
            raise PydanticCustomError("unfit_choice", "must be {names}", {"names": " or ".join(sorted(self.names))})
        return name


def choice_of(field: FieldInfo) -> Choice:
    """What a setting chooses from that is marked as a `Choice`, or is a tuple of what is so marked."""
    marks = [*field.metadata, *(mark for of in get_args(field.annotation) for mark in getattr(of, "__metadata__", ()))]
    (choice,) = (mark for mark in marks if isinstance(mark, Choice))
    return choice


def resolve(config_type: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """The settings made of `values`, with defaults filled in.

    Types are strict, as in JSON: 3 is a float too, but '3' is not a number and a list is a tuple.

    Args:
        config_type: which settings.
        values: plain values, as YAML or the command line gives them.
        where: the name of the stage, which leads every message.

    Raises:
        ConfigError: one line that names every problem.
    """
    completed = config_type.completed(values)
    filled = {**completed.own_defaults(values), **values}
    try:
        return completed.model_validate_json(json.dumps(filled, default=str), strict=True)  # str: of a Path
    except ValidationError as error:
        raise problems(error, where, lambda name: completed.unknown_setting(name, where), completed.owner) from None


def problems(
    error: ValidationError,
    where: str,
    unknown_key: Callable[[str], ConfigError],
    owner: Callable[[str], str] = lambda name: "",
) -> ConfigError:
    """All that pydantic found, in one line.

    Args:
        where: what was validated, which leads every message.
        unknown_key: the error for a key that is not known.
        owner: what has a key if not all have it, in words.
    """
    return ConfigError("; ".join(_problem(details, where, unknown_key, owner) for details in error.errors()))


def _problem(details: Any, where: str, unknown_key: Callable[[str], ConfigError], owner: Callable[[str], str]) -> str:
    location = ".".join([where, *map(str, details["loc"])])
    key = str(details["loc"][0]) if details["loc"] else ""
    if details["type"] == "extra_forbidden" and len(details["loc"]) == 1:
        return str(unknown_key(key))
    if details["type"] == "unknown_choice":
        return str(unknown(location, details["input"], details["ctx"]["choices"]))
    if details["type"] == "missing":
        return f"{location}: is required{owner(key)}"
    # From pydantic's 'Input should be ...' and 'Tuple should have ... after validation, ...'
    message = re.sub(r"^\w+ should ", "must ", details["msg"].removeprefix("Value error, "))
    message = " ".join(message.replace(" after validation", "").split())
    # A check over several settings sees all of them as its input, which would drown its message.
    got = "" if isinstance(details["input"], (dict, BaseModel)) else f"got {details['input']!r}, "
    return f"{location}: {got}{message}{owner(key)}"


def canonical(config: StageConfig) -> dict[str, Any]:
    """The plain values that identify a result: all settings but the locations."""
    locations = {name for name, field in type(config).model_fields.items() if _is_location(field.json_schema_extra)}
    return config.model_dump(mode="json", exclude=locations)


def _is_location(extra: Any) -> bool:
    return isinstance(extra, dict) and bool(extra.get("location"))


def config_hash(config: StageConfig) -> str:
    """The sha256 of the canonical settings."""
    return hash_of(canonical(config))


def hash_of(value: Any) -> str:
    """The sha256 of a plain value's canonical JSON: sorted keys, no spaces, so equal values have equal hashes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def to_yaml(config: StageConfig) -> str:
    """All settings as YAML text, locations included, in the order they are declared."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def from_yaml(config_type: type[Config], text: str, where: str) -> Config:
    """The inverse of `to_yaml`.

    Raises:
        ConfigError: if the text is not YAML, not a mapping, or does not fit the settings.
    """
    return resolve(config_type, yaml_mapping(text, where), where)


def yaml_mapping(text: str, where: str) -> dict[str, Any]:
    """The mapping a YAML document holds.

    Raises:
        ConfigError: if the document is not YAML, repeats a key, or is not a mapping.
    """
    value = yaml_value(text, where)
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: must be a mapping of keys to values, got {type(value).__name__}")
    return value


def yaml_value(text: str, where: str) -> Any:
    """The value a YAML document holds; `1e-4` is a number, and a repeated key is an error.

    Raises:
        ConfigError: if the document is not YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{where}: {line}{error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())}") from None


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a repeated key is an error instead of the last one winning, and a date is a string."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (declared by PyYAML)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        # Checked while composing: later, merged keys ('<<') can no longer be told from the mapping's own.
        node = super().compose_mapping_node(anchor)
        seen: set[Hashable] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"the key '{key.value}' is repeated", key.start_mark)
                seen.add(key.value)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge ('<<') into a mapping, whose own keys win over merged ones at once: for PyYAML 6.0.4, which merges the
        first of equal keys into the next mapping, not the one that won.
        """
        super().flatten_mapping(node)
        last = {key.value: place for place, (key, _) in enumerate(node.value) if isinstance(key, yaml.ScalarNode)}
        node.value = [
            (key, value)
            for place, (key, value) in enumerate(node.value)
            if not isinstance(key, yaml.ScalarNode) or last[key.value] == place
        ]


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads."""


# PyYAML follows YAML 1.1, where 1e-4 without a point is a string: a trap in every learning rate.
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
    )
