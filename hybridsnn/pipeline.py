"""Recipes: read one, say what there is left to do, do it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hybridsnn import __version__
from hybridsnn.artifacts import Artifact, artifacts_in, check_name, find, scratch_folder
from hybridsnn.config import StageConfig, canonical, config_hash, resolve, yaml_mapping, yaml_value
from hybridsnn.errors import ConfigError, HybridSNNError, OutOfTimeError
from hybridsnn.registry import look_up, unknown
from hybridsnn.stages import STAGES
from hybridsnn.stages.base import Environment, Stage, execute

Status = Literal["current", "interrupted", "to do"]


class RecipeFile(StageConfig):
    """The outline of a recipe; what each stage is given is checked by that stage."""

    name: str
    description: str = ""
    shared: Any = None
    stages: dict[str, dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class Step:
    """One stage of a recipe; `name` is also what its artifact is called, `sources` are the steps it reads."""

    name: str
    stage: Stage
    config: StageConfig
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """Steps in the order they run, each reading only earlier ones."""

    name: str
    description: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Planned:
    """What a run would do about a step, and why; `artifact` is there if the step is current."""

    step: Step
    status: Status
    reason: str
    artifact: Artifact | None = None


def load_recipe(path: Path, overrides: Sequence[str] = (), stages: Mapping[str, Stage] = STAGES) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a YAML file.
        overrides: settings that replace those in the file, as `step.setting=value`, the value in YAML.
        stages: the stages a recipe can name.

    Raises:
        ConfigError: one line that names every problem.
    """
    if not path.is_file():
        beside = ", ".join(sorted(file.name for file in path.parent.glob("*.yaml"))) or "no recipes"
        raise ConfigError(f"{path}: no such recipe; {path.parent} holds {beside}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: unreadable: {error}") from None
    values = yaml_mapping(text, str(path))
    try:
        outline = resolve(RecipeFile, values, "recipe")
        check_name(outline.name, "recipe.name")
    except HybridSNNError as error:
        raise ConfigError(f"{path}: {error}") from None
    drafts = {name: dict(values) for name, values in outline.stages.items()}
    for override in overrides:
        _override(drafts, override)

    steps: dict[str, Step] = {}
    problems: list[str] = []
    for name, values in drafts.items():
        try:
            steps[name] = _step(name, values, list(drafts), steps, stages)
        except HybridSNNError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(f"{path}: {'; '.join(problems)}")
    return Recipe(outline.name, outline.description, tuple(steps.values()))


def _override(drafts: dict[str, dict[str, Any]], override: str) -> None:
    target, equals, text = override.partition("=")
    name, dot, setting = target.partition(".")
    if not (equals and dot and setting):
        raise ConfigError(f"--set: got '{override}', must be step.setting=value, e.g. ann.epochs=3")
    look_up(drafts, name, "--set")[setting] = yaml_value(text, f"--set {target}")


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
        config = resolve(stage.config, settings, name)
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("; ".join(problems))
    return Step(name, stage, config, sources)


def _problems_of_sources(
    name: str, stage: Stage, sources: tuple[str, ...], names: list[str], earlier: Mapping[str, Step]
) -> list[str]:
    where = f"{name}.from"
    if stage.consumes and not sources:
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


def plan(recipe: Recipe, run_folder: Path, environment: Environment | None = None) -> list[Planned]:
    """What a run would do, step by step. Nothing is written, and files of artifacts are not verified."""
    planned: list[Planned] = []
    artifacts: dict[str, Artifact] = {}
    for step in recipe.steps:
        planned.append(_look_at(step, artifacts, run_folder, environment or Environment()))
        if artifact := planned[-1].artifact:
            artifacts[step.name] = artifact
    return planned


def _look_at(step: Step, artifacts: Mapping[str, Artifact], run_folder: Path, environment: Environment) -> Planned:
    """The state of a step, given the artifacts of the earlier steps that are current."""
    waiting_for = [source for source in step.sources if source not in artifacts]
    if waiting_for:
        return Planned(step, "to do", f"after {', '.join(waiting_for)}")
    parents = [artifacts[source] for source in step.sources]
    key = step.stage.key(step.config, parents, environment)
    if artifact := find(run_folder, key):
        return Planned(step, "current", f"made {artifact.manifest.created:%Y-%m-%d %H:%M} UTC", artifact)
    if scratch_folder(run_folder, key).is_dir():
        return Planned(step, "interrupted", "resumes where it stopped")
    return Planned(step, "to do", _difference(step, run_folder))


def _difference(step: Step, run_folder: Path) -> str:
    """Why the newest artifact of this step, if there is one, is no longer current."""
    made = [a for a in artifacts_in(run_folder) if a.manifest.stage == step.stage.name and _named_after(a, step.name)]
    if not made:
        return "not made yet"
    if made[-1].manifest.config_hash != config_hash(step.config):
        before, now = made[-1].config(), canonical(step.config)
        changed = [setting for setting in now if before.get(setting) != now[setting]]
        return f"changed: {', '.join(changed) or 'settings'}"
    if made[-1].manifest.versions.get("hybridsnn") != __version__:
        return f"made by hybridsnn {made[-1].manifest.versions.get('hybridsnn')}"
    return "changed: what it reads"


def _named_after(artifact: Artifact, name: str) -> bool:
    suffix = artifact.name.removeprefix(name)
    return artifact.name.startswith(name) and (not suffix or suffix[1:].isdigit())


def run(
    recipe: Recipe,
    run_folder: Path,
    environment: Environment,
    on_step: Callable[[Planned], None] = lambda planned: None,
    on_done: Callable[[Step, Artifact, bool], None] = lambda step, artifact, made: None,
    fresh: bool = False,
) -> list[Artifact]:
    """Make every artifact that is not current.

    Args:
        on_step: called before a step, with its state at that moment.
        on_done: called after it, with the artifact and whether it was made just now.
        fresh: start interrupted steps over.

    Returns:
        one artifact for each step.

    Raises:
        OutOfTimeError: within a step or between two, once the time is up.
    """
    artifacts: dict[str, Artifact] = {}
    made_any = False
    for step in recipe.steps:
        planned = _look_at(step, artifacts, run_folder, environment)
        if made_any and planned.status != "current" and environment.time_is_up():
            raise OutOfTimeError(f"{step.name}: not begun, as the time is up; the same command goes on with it")
        on_step(planned)
        parents = [artifacts[source] for source in step.sources]
        artifact, made = execute(step.stage, step.config, parents, run_folder, environment, name=step.name, fresh=fresh)
        made_any = made_any or made
        artifacts[step.name] = artifact
        on_done(step, artifact, made)
    return list(artifacts.values())
