"""Plans and runs recipes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hybridsnn import __version__
from hybridsnn.artifacts import Artifact, artifacts_in, find, scratch_folder
from hybridsnn.config import canonical, config_hash
from hybridsnn.errors import OutOfTimeError
from hybridsnn.recipes.recipe import Recipe, Step
from hybridsnn.stages.base import Environment, execute

Status = Literal["current", "interrupted", "to do"]


@dataclass(frozen=True)
class Planned:
    """The status of a step and the reason for it; `artifact` is set if the step is current."""

    step: Step
    status: Status
    reason: str
    artifact: Artifact | None = None


def plan(recipe: Recipe, run_folder: Path, environment: Environment | None = None) -> list[Planned]:
    """The status of each step. Nothing is written, and files of artifacts are not verified."""
    planned: list[Planned] = []
    artifacts: dict[str, Artifact] = {}
    for step in recipe.steps:
        planned.append(_look_at(step, artifacts, run_folder, environment or Environment()))
        if artifact := planned[-1].artifact:
            artifacts[step.name] = artifact
    return planned


def _look_at(step: Step, artifacts: Mapping[str, Artifact], run_folder: Path, environment: Environment) -> Planned:
    """The status of a step, given the artifacts of the earlier steps that are current."""
    waiting_for = [source for source in step.sources if source not in artifacts]
    if waiting_for:
        return Planned(step, "to do", f"after {', '.join(waiting_for)}")
    parents = [artifacts[source] for source in step.sources]
    key = step.stage.key(step.config, parents, environment)
    if artifact := find(run_folder, key):
        return Planned(step, "current", f"made {artifact.manifest.created:%Y-%m-%d %H:%M} UTC", artifact)
    if scratch_folder(run_folder, key).is_dir():
        return Planned(step, "interrupted", "resumes where it was interrupted")
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
    """Run every step whose artifact is not current.

    Args:
        on_step: called before a step, with its status.
        on_done: called after it, with the artifact and whether it was made just now.
        fresh: start interrupted steps over instead of resuming them.

    Returns:
        one artifact for each step.

    Raises:
        OutOfTimeError: within a step or between two, once the time limit is reached.
    """
    artifacts: dict[str, Artifact] = {}
    made_any = False
    for step in recipe.steps:
        planned = _look_at(step, artifacts, run_folder, environment)
        if made_any and planned.status != "current" and environment.time_is_up():
            raise OutOfTimeError(f"{step.name}: not begun: time limit reached; the same command resumes here")
        on_step(planned)
        parents = [artifacts[source] for source in step.sources]
        artifact, made = execute(step.stage, step.config, parents, run_folder, environment, name=step.name, fresh=fresh)
        made_any = made_any or made
        artifacts[step.name] = artifact
        on_done(step, artifact, made)
    return list(artifacts.values())
