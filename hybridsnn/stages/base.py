"""Stages: functions from artifacts to one artifact, and how one is executed."""

import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from hybridsnn.artifacts import (
    CONFIG,
    Artifact,
    Draft,
    Kind,
    artifacts_in,
    check_name,
    claim,
    find,
    key_of,
    newest,
    scratch_folder,
)
from hybridsnn.config import StageConfig, to_yaml
from hybridsnn.errors import ArtifactError, OutOfTimeError

Item = TypeVar("Item")

SPENT = "seconds.txt"  # in a scratch folder


class Progress(Protocol):
    """How a stage reports its progress."""

    def track(self, iterable: Iterable[Item], description: str, total: int) -> Iterator[Item]:
        """Yield the items while showing how many of `total` are done."""
        ...

    def say(self, text: str) -> None:
        """Show one line."""
        ...


class Silent:
    """Progress that is not shown."""

    def track(self, iterable: Iterable[Item], description: str, total: int) -> Iterator[Item]:
        yield from iterable

    def say(self, text: str) -> None:
        pass


@dataclass(frozen=True)
class Environment:
    """Where and how a stage runs; never part of a result's identity.

    Attributes:
        opened: the data set that was opened last, for the next stage of the same command.
        time_is_up: whether the time limit is reached; a stage then saves a checkpoint and raises `OutOfTimeError`.
    """

    device: str = "auto"
    data: Path | None = None
    download: bool = False
    progress: Progress = field(default_factory=Silent)
    opened: dict[tuple[Any, ...], Any] = field(default_factory=dict, compare=False)
    time_is_up: Callable[[], bool] = lambda: False


@dataclass
class Work:
    """The input of a stage, and what it returns for the manifest.

    Attributes:
        folder: files written here become the artifact.
        scratch: for checkpoints; kept when the process is killed, until the artifact is complete.
        data: name and fingerprint of the data the stage used, set by the stage.
        device: that it ran on, with the name of the hardware in brackets; set by the stage.
    """

    config: StageConfig
    parents: tuple[Artifact, ...]
    folder: Path
    scratch: Path
    environment: Environment
    data: tuple[str, str] | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline.

    Attributes:
        name: the command, e.g. `train-ann`.
        summary: one line for lists and help.
        config: the type of its settings; its docstring is the paragraph under the summary.
        consumes: kinds of artifact that fit as a parent; empty for a stage that starts from nothing.
        produces: the kind it makes.
        run: makes the files of the artifact.
        folder: the artifact's default name, e.g. `convert-max`.
        continues: for a stage that starts from nothing, or from a parent that is named: the settings with a parent.
        many: takes any number of parents.
        each: with no parent given, runs once for every fitting artifact of the run.
        outside: hashes, by name, of inputs that the settings only locate, such as a file of weights or a folder of
            images. Must be quick.
        example: a command for the help.
    """

    name: str
    summary: str
    config: type[StageConfig]
    consumes: tuple[Kind, ...]
    produces: Kind
    run: Callable[[Work], None]
    folder: Callable[[StageConfig, tuple[Artifact, ...]], str]
    continues: type[StageConfig] | None = None
    many: bool = False
    each: bool = False
    outside: Callable[[StageConfig, Environment], Mapping[str, str]] | None = None
    example: str = ""

    @property
    def needs_parent(self) -> bool:
        """Whether it cannot start from nothing."""
        return bool(self.consumes) and self.continues is None

    def settings(self, with_parents: bool) -> type[StageConfig]:
        """The type of its settings, where it has parents or where it has none."""
        return self.continues if with_parents and self.continues is not None else self.config

    def key(self, config: StageConfig, parents: Sequence[Artifact], environment: Environment) -> str:
        """What identifies the result of running this stage."""
        return key_of(self.name, config, parents, self.outside(config, environment) if self.outside else None)


def execute(
    stage: Stage,
    config: StageConfig,
    parents: Sequence[Artifact],
    run_folder: Path,
    environment: Environment,
    *,
    name: str | None = None,
    fresh: bool = False,
) -> tuple[Artifact, bool]:
    """Make an artifact, unless the run holds a current one.

    Args:
        parents: opened and verified artifacts, of kinds the stage consumes.
        run_folder: where the artifact goes; made if missing.
        name: the artifact's name instead of the stage's default.
        fresh: start over instead of resuming what a killed process left.

    Returns:
        the artifact, and whether it was made just now.

    Raises:
        ArtifactError: if the parents do not fit, or the current artifact is damaged.
        OutOfTimeError: if the time limit was reached before it was made.
    """
    parents = tuple(parents)
    _check_parents(stage, parents)
    if not isinstance(config, wanted := stage.settings(bool(parents))):
        raise TypeError(f"{stage.name}: needs settings of type {wanted.__name__}, got {type(config).__name__}")
    name = name or stage.folder(config, parents)
    check_name(name, "name")
    key = stage.key(config, parents, environment)
    if current := find(run_folder, key):
        current.verify()
        return current, False

    def waiting() -> None:
        environment.progress.say(f"{stage.name}: another process is making the same artifact; waiting for it")

    with claim(run_folder, key, waiting):
        if current := find(run_folder, key):
            current.verify()
            return current, False
        scratch = scratch_folder(run_folder, key)
        if fresh:
            shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(exist_ok=True)
        spent = _seconds_in(scratch)
        started = time.perf_counter()
        try:
            with Draft.begin(run_folder, name, key) as draft:
                work = Work(config, parents, draft.path, scratch, environment)
                stage.run(work)
                (draft.path / CONFIG).write_text(to_yaml(config), encoding="utf-8")
                artifact = draft.commit(
                    kind=stage.produces,
                    stage=stage.name,
                    config=config,
                    parents=parents,
                    data=work.data,
                    device=work.device,
                    wall_seconds=spent + time.perf_counter() - started,
                    peak_memory_bytes=_peak_memory(work.device),
                )
        except BaseException as error:
            if any(file.name != SPENT for file in scratch.iterdir()):
                (scratch / SPENT).write_text(f"{spent + time.perf_counter() - started}\n", encoding="utf-8")
            else:
                shutil.rmtree(scratch, ignore_errors=True)  # nothing to resume
            if isinstance(error, OutOfTimeError):
                raise OutOfTimeError(f"{name}: {error}") from None
            raise
        shutil.rmtree(scratch, ignore_errors=True)
        return artifact, True


def _seconds_in(scratch: Path) -> float:
    """The time that interrupted processes have spent on this artifact; one that was killed has left no record."""
    with suppress(OSError, ValueError):
        return float((scratch / SPENT).read_text(encoding="utf-8"))
    return 0.0


def _check_parents(stage: Stage, parents: tuple[Artifact, ...]) -> None:
    if stage.needs_parent and not parents:
        raise ArtifactError(f"{stage.name}: needs an artifact of kind {' or '.join(stage.consumes)}, got none")
    if len(parents) > 1 and not stage.many:
        raise ArtifactError(f"{stage.name}: takes one artifact, got {', '.join(p.name for p in parents)}")
    for parent in parents:
        if parent.kind not in stage.consumes:
            wanted = " or ".join(stage.consumes) or "no artifact at all"
            raise ArtifactError(f"{stage.name}: {parent.path} is of kind {parent.kind}, wanted {wanted}")


def _peak_memory(device: str) -> int:
    """Peak memory in bytes: of the GPU if the stage used one, else of this process so far."""
    if device.startswith("cuda"):
        import torch  # not needed to read, list or skip artifacts

        return torch.cuda.max_memory_allocated(device.split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def default_parents(stage: Stage, run_folder: Path, stages: Mapping[str, Stage]) -> list[tuple[Artifact, ...]]:
    """The parents to use when none are named, one tuple per execution; verified.

    Usually the newest fitting artifact that this stage did not make itself, so that repeating a command repeats it
    instead of chaining. A stage that takes many gets all of them; one that runs on each gets a tuple for each; one that
    can start from nothing does.

    Args:
        stages: where to find the command that makes what is missing.

    Raises:
        ArtifactError: if the run holds nothing that fits, or what fits is damaged.
    """
    if not stage.needs_parent:
        return [()]
    latest = newest(run_folder, stage.consumes, exclude_stage=stage.name)
    if latest is None:
        raise _nothing_fits(stage, run_folder, stages)
    if not (stage.many or stage.each):
        latest.verify()
        return [(latest,)]
    fitting = tuple(a for a in artifacts_in(run_folder) if a.kind in stage.consumes and a.manifest.stage != stage.name)
    for artifact in fitting:
        artifact.verify()
    return [fitting] if stage.many else [(artifact,) for artifact in fitting]


def _nothing_fits(stage: Stage, run_folder: Path, stages: Mapping[str, Stage]) -> ArtifactError:
    present = ", ".join(f"{a.name} ({a.kind})" for a in artifacts_in(run_folder)) or "no artifacts"
    makers = [s.name for s in stages.values() if s.produces in stage.consumes and s.name != stage.name]
    remedy = f"; make one with `hybridsnn {makers[0]} --run {run_folder.name}`" if makers else ""
    wanted = " or ".join(stage.consumes)
    return ArtifactError(f"{stage.name}: needs an artifact of kind {wanted}; {run_folder} holds {present}{remedy}")
