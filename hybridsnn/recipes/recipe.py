"""Recipes: YAML files that name the stages of a run, with parameters and presets of parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from hybridsnn.artifacts import check_name
from hybridsnn.config import StageConfig, resolve, yaml_mapping, yaml_value
from hybridsnn.errors import ConfigError, HybridSNNError
from hybridsnn.registry import look_up, unknown
from hybridsnn.stages import STAGES
from hybridsnn.stages.base import Stage

FULL = "full"  # the preset that changes no parameter


class Row(StageConfig):
    """The row of a paper's table that a recipe reproduces.

    Attributes:
        paper: its name.
        network: the row's name in the paper.
        columns: the column of the table for each evaluation, by step.
        published: top-1 accuracy in percent, by step.
        published_timesteps: whether T of the preset `full` is the paper's; false where the paper does not say.
    """

    paper: str
    network: str
    columns: dict[str, str] = Field(min_length=1)
    published: dict[str, float] = Field(default_factory=dict)
    published_timesteps: bool = False


class RecipeFile(StageConfig):
    """The content of a recipe file; the settings of each stage are checked by that stage.

    Attributes:
        based_on: another recipe file, relative to this one, over whose content this one is merged, mapping by mapping.
        shared: holds YAML anchors that are used elsewhere in the file.
        parameters: values of settings written as `$name`; null leaves the setting at the stage's default.
        presets: values for several parameters at once, by name.
    """

    name: str
    description: str = ""
    based_on: str | None = None
    shared: Any = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    presets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    row: Row | None = None
    stages: dict[str, dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class Step:
    """One stage of a recipe; `name` is also the name of its artifact, `sources` are the steps it reads."""

    name: str
    stage: Stage
    config: StageConfig
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """Steps in the order they run, each reading only earlier ones; `row` is what they reproduce, if anything."""

    name: str
    description: str
    steps: tuple[Step, ...]
    row: Row | None = None
    preset: str = FULL

    @property
    def run_name(self) -> str:
        """The default name of its run."""
        return self.name if self.preset == FULL else f"{self.name}-{self.preset}"

    def before(self, step: Step) -> list[Step]:
        """A step and all that it is made from, in the order they run."""
        wanted = {step.name}
        for earlier in reversed(self.steps):
            if earlier.name in wanted:
                wanted.update(earlier.sources)
        return [other for other in self.steps if other.name in wanted]


def load_recipe(
    path: Path, overrides: Sequence[str] = (), stages: Mapping[str, Stage] = STAGES, preset: str = FULL
) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a YAML file.
        overrides: replace what the file says: `step.setting=value` or `parameter=value`, the value in YAML.
        stages: the stages a recipe can name.
        preset: one of the recipe's; `full` changes no parameter.

    Raises:
        ConfigError: one line that names every problem.
    """
    try:
        outline = resolve(RecipeFile, _read(path), "recipe")
        check_name(outline.name, "recipe.name")
        parameters, drafts = dict(outline.parameters), {name: dict(values) for name, values in outline.stages.items()}
        written = {value for values in drafts.values() for value in values.values() if isinstance(value, str)}
        if idle := [name for name in parameters if f"${name}" not in written]:
            raise ConfigError(
                f"parameters: no setting uses {', '.join(idle)}; remove them, or write ${idle[0]} in its place"
            )
        if preset != FULL:
            _set(parameters, look_up(outline.presets, preset, "preset"), f"presets.{preset}")
        for override in overrides:
            _override(parameters, drafts, override)
        drafts = _filled_in(drafts, parameters)
        if (row := outline.row) is not None:
            for name in row.columns:
                look_up(drafts, name, "row.columns")
            for name in row.published:
                look_up(row.columns, name, "row.published")
    except HybridSNNError as error:
        raise ConfigError(f"{path}: {error}") from None

    steps: dict[str, Step] = {}
    problems: list[str] = []
    for name, values in drafts.items():
        try:
            steps[name] = _step(name, values, list(drafts), steps, stages)
        except HybridSNNError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(f"{path}: {'; '.join(problems)}")
    return Recipe(outline.name, outline.description, tuple(steps.values()), outline.row, preset)


def _read(path: Path, under: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a file, merged over that of the file it is based on."""
    if not path.is_file():
        beside = ", ".join(sorted(file.name for file in path.parent.glob("*.yaml"))) or "no recipes"
        raise ConfigError(f"no such recipe; {path.parent} holds {beside}")
    try:
        values = yaml_mapping(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"unreadable: {error}") from None
    if (base := values.get("based_on")) is None:
        return values
    below = (path.parent / str(base)).resolve()
    if below in under:
        raise ConfigError(f"based_on: {base} is based on itself; remove one of the two")
    try:
        return _merged(_read(below, (*under, below)), values)
    except ConfigError as error:
        raise ConfigError(f"based_on: {base}: {error}") from None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _set(parameters: dict[str, Any], values: Mapping[str, Any], where: str) -> None:
    for name, value in values.items():
        look_up(parameters, name, where)
        parameters[name] = value


def _override(parameters: dict[str, Any], drafts: dict[str, dict[str, Any]], override: str) -> None:
    target, equals, text = override.partition("=")
    name, dot, setting = target.partition(".")
    if not (equals and name and (setting or (parameters and not dot))):
        forms = "step.setting=value, e.g. ann.epochs=3" + (", or parameter=value" if parameters else "")
        raise ConfigError(f"--set: got '{override}', must be {forms}")
    value = yaml_value(text, f"--set {target}")
    if setting:
        look_up(drafts, name, "--set")[setting] = value
    else:
        _set(parameters, {name: value}, "--set")


def _filled_in(drafts: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings with the values of parameters in the place of their names."""
    filled: dict[str, dict[str, Any]] = {}
    for step, values in drafts.items():
        filled[step] = {}
        for setting, value in values.items():
            if isinstance(value, str) and value.startswith("$"):
                value = look_up(parameters, value[1:], f"{step}.{setting}: parameter")
                if value is None:
                    continue
            filled[step][setting] = value
    return filled


def _step(
    name: str, values: dict[str, Any], names: list[str], earlier: Mapping[str, Step], stages: Mapping[str, Stage]
) -> Step:
    check_name(name, "stages")
    if "stage" not in values:
        raise ConfigError(f"{name}.stage: is required. Choices: {', '.join(sorted(stages))}")
    stage = look_up(stages, str(values["stage"]), f"{name}.stage")
    sources = values.get("from", [])
    sources = tuple(str(source) for source in (sources if isinstance(sources, list) else [sources]))
    problems = _problems_of_sources(name, stage, sources, names, earlier)
    settings = {key: value for key, value in values.items() if key not in ("stage", "from")}
    try:
        config = resolve(stage.settings(bool(sources)), settings, name)
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("; ".join(problems))
    return Step(name, stage, config, sources)


def _problems_of_sources(
    name: str, stage: Stage, sources: tuple[str, ...], names: list[str], earlier: Mapping[str, Step]
) -> list[str]:
    where = f"{name}.from"
    if stage.needs_parent and not sources:
        return [f"{where}: is required: {stage.name} reads {' or '.join(stage.consumes)}"]
    if sources and not stage.consumes:
        return [f"{where}: {stage.name} reads nothing; remove it"]
    if len(sources) > 1 and not stage.many:
        return [f"{where}: got {', '.join(sources)}, {stage.name} reads one"]
    problems = []
    for source in sources:
        if source not in names:
            problems.append(str(unknown(where, source, names)))
        elif names.index(source) >= names.index(name):
            problems.append(f"{where}: '{source}' must come before '{name}'; move it up")
        elif source in earlier and earlier[source].stage.produces not in stage.consumes:
            made = earlier[source].stage.produces
            problems.append(f"{where}: '{source}' makes {made}, {stage.name} reads {' or '.join(stage.consumes)}")
    return problems
