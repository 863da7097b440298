"""Tables of results: collected from runs, written with their evidence, verified when they are read."""

import csv
import hashlib
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import pandas as pd

from hybridsnn.artifacts import CONFIG, MANIFEST, Artifact, Manifest, lineage, sha256_of
from hybridsnn.errors import ArtifactError
from hybridsnn.recipes.recipe import Recipe, Row, Step
from hybridsnn.reporting.metrics import by_step, total
from hybridsnn.reporting.results import Result
from hybridsnn.reporting.tables import markdown, results_table
from hybridsnn.stages.networks import METRICS

RESULTS, EVIDENCE = "results.csv", "evidence.json"
KEPT = (MANIFEST, CONFIG, METRICS)  # of an artifact, as evidence; weights are too large

Evidence = dict[str, dict[str, str]]  # sha256 of a manifest -> name -> text
Curves = dict[tuple[str, str], pd.Series]  # (recipe, column) -> accuracy in percent by step


@dataclass
class Table:
    """Results, and as evidence the text files of the artifacts they come from."""

    results: list[Result] = field(default_factory=list)
    evidence: Evidence = field(default_factory=dict)

    def add_row(
        self, recipe: Recipe, paper: Recipe, runs: Sequence[Mapping[str, Artifact]], missing: bool = False
    ) -> None:
        """Add the results of a recipe.

        Args:
            recipe: one that has a row, with the preset it was run with.
            paper: the same recipe with the preset `full`.
            runs: for each seed, the artifacts there are, by step.
            missing: whether the data set could not be opened.
        """
        assert recipe.row is not None
        counted: set[str] = set()
        for step in recipe.steps:
            if step.name in recipe.row.columns:
                made = [run[step.name] for run in runs if step.name in run]
                stages = [other.name for other in recipe.before(step) if other.name not in counted]
                counted.update(stages)
                seconds = [sum(run[name].manifest.wall_seconds for name in stages) for run in runs if step.name in run]
                self.results.append(_result(recipe, paper, step, made, seconds, missing))
        for run in runs:
            for artifact in run.values():
                if artifact.kind == "evaluation":
                    for ancestor in lineage(artifact):
                        texts = _kept(ancestor)
                        self.evidence[_sha256(texts[MANIFEST])] = texts

    @property
    def curves(self) -> Curves:
        """Accuracy in percent at each step, of the first seed."""
        curves: Curves = {}
        for result in self.results:
            if result.timesteps is not None and result.digests:
                metrics = _metrics(self.evidence[result.digests[0]][METRICS])
                curves[result.recipe, result.column] = 100 * by_step(metrics, "accuracy")
        return curves

    def write(self, folder: Path) -> None:
        """Write `results.csv`, a line for each number and seed, and `evidence.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame([line for result in self.results for line in _lines(result)]).to_csv(
            folder / RESULTS, index=False, lineterminator="\n"
        )
        text = json.dumps(self.evidence, indent=1, sort_keys=True, ensure_ascii=False)
        (folder / EVIDENCE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Table":
        """Read what `write` wrote, and verify every number.

        Raises:
            ArtifactError: if a file is missing or unreadable, or a number is not what its artifact measured.
        """
        try:
            with (folder / RESULTS).open(encoding="utf-8", newline="") as stream:
                lines = list(csv.DictReader(stream))
            evidence: Evidence = json.loads((folder / EVIDENCE).read_text(encoding="utf-8"))
            table = cls(_results(lines), evidence)
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(f"{folder}: no readable results ({error}); make them with `hybridsnn table`") from None
        for result in table.results:
            for accuracy, digest in zip(result.accuracies, result.digests, strict=True):
                table._trace(result, accuracy, digest, folder)
        return table

    def _trace(self, result: Result, accuracy: float, digest: str, folder: Path) -> None:
        """Verify a number against the hashes of the artifacts it comes from."""
        where = f"{folder}: {result.recipe}, {result.column}"
        manifest = self._manifest(digest, where)
        measured = _accuracy(_metrics(self.evidence[digest][METRICS]))
        if round(measured, DIGITS) != accuracy:
            raise ArtifactError(f"{where}: got {accuracy} %, but {digest[:12]} measured {measured} %; make it again")
        pending = list(manifest.parents)
        while pending:
            pending += self._manifest(pending.pop().manifest_sha256, where).parents

    def _manifest(self, digest: str, where: str) -> Manifest:
        """The manifest with this hash; the hashes of its other files are verified too."""
        texts = self.evidence.get(digest)
        if texts is None:
            raise ArtifactError(f"{where}: the artifact {digest[:12]} is not in {EVIDENCE}; make the table again")
        if _sha256(texts[MANIFEST]) != digest:
            raise ArtifactError(f"{where}: {MANIFEST} of {digest[:12]} was changed; make the table again")
        manifest = Manifest.model_validate_json(texts[MANIFEST])
        for name, text in texts.items():
            if name != MANIFEST and _sha256(text) != manifest.files.get(name):
                raise ArtifactError(f"{where}: {name} of {digest[:12]} was changed; make the table again")
        return manifest


DIGITS = 6  # of a percentage


def _result(
    recipe: Recipe, paper: Recipe, step: Step, made: Sequence[Artifact], seconds: Sequence[float], missing: bool
) -> Result:
    row = cast(Row, recipe.row)
    metrics = [_metrics(artifact.file(METRICS).read_text(encoding="utf-8")) for artifact in made]
    last = made[-1].manifest if made else None
    first = recipe.before(step)[0].config
    named = "/".join(filter(None, (getattr(first, "dataset", ""), getattr(first, "folder", None))))
    published = row.published.get(step.name)
    of_paper = next(other for other in paper.steps if other.name == step.name)
    return Result(
        recipe=recipe.name,
        paper=row.paper,
        network=row.network,
        column=row.columns[step.name],
        dataset=last.data.name if last and last.data else named,
        images=getattr(first, "images", None),
        timesteps=_timesteps(recipe, step),
        published_timesteps=_timesteps(paper, of_paper) if published is not None and row.published_timesteps else None,
        published=published,
        accuracies=tuple(round(_accuracy(one), DIGITS) for one in metrics),
        test_images=_count(total(metrics[0], "images")) if metrics else None,
        preset=recipe.preset,
        device=last.device if last else "",
        wall_seconds=round(statistics.fmean(seconds), 1) if seconds else None,
        created=f"{last.created:%Y-%m-%d}" if last else "",
        digests=tuple(sha256_of(artifact.path / MANIFEST) for artifact in made),
        versions=dict(last.versions) if last else {},
        note=_note(made, missing),
    )


def _note(made: Sequence[Artifact], missing: bool) -> str:
    if not made:
        return "the data set was not there" if missing else "not run yet"
    networks = [network for artifact in made for network in lineage(artifact)[-2:-1]]
    histories = [network.file(METRICS) for network in networks if METRICS in network.manifest.files]
    if any(total(_metrics(history.read_text(encoding="utf-8")), "kept-epoch") == 0 for history in histories):
        return "no epoch was better on the validation images than the start"
    return ""


def _timesteps(recipe: Recipe, step: Step) -> int | None:
    """T of the network that a step evaluates: that of the last step before it that sets it."""
    for setting in ("timesteps", "event_frames"):
        for earlier in reversed(recipe.before(step)):
            if (timesteps := getattr(earlier.config, setting, None)) is not None:
                return int(timesteps)
    return None


def _kept(artifact: Artifact) -> dict[str, str]:
    present = [name for name in KEPT if name == MANIFEST or name in artifact.manifest.files]
    return {name: (artifact.path / name).read_text(encoding="utf-8") for name in present}


def _metrics(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text))


def _accuracy(metrics: pd.DataFrame) -> float:
    """Accuracy at the last step, percent."""
    steps = by_step(metrics, "accuracy")
    return 100 * float(steps.iloc[-1] if len(steps) else total(metrics, "accuracy"))


def _count(number: float) -> int | None:
    return None if math.isnan(number) else int(number)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def page(folder: Path) -> tuple[str, int]:
    """All tables in the subfolders of a folder as Markdown, and how many numbers they have, each verified.

    Raises:
        ArtifactError: if there is no table, or a number is not what its artifact measured.
    """
    tables = {path.parent.name: Table.read(path.parent) for path in sorted(folder.glob(f"*/{RESULTS}"))}
    if not tables:
        raise ArtifactError(f"{folder}: holds no tables; make one with `hybridsnn table ... --output {folder}/NAME`")
    parts = [PAGE]
    for name, table in tables.items():
        parts.append(f"## {name}\n\n[With curves]({name}/index.html), [CSV]({name}/{RESULTS}).\n")
        parts.append(markdown(results_table(table.results)))
    return "\n".join(parts), sum(len(result.accuracies) for table in tables.values() for result in table.results)


PAGE = """# Results

Written by `hybridsnn results docs/results` from the tables in this folder; nothing is typed by hand. Each number is in
the metrics of an evaluation, whose hash is in its manifest, as are the hashes of what it was made from, and so on back
to the first training. `evidence.json` holds these files, and the command fails at a number that they do not prove.

With another preset than `full`, networks are smaller than the papers' or were trained on fewer images for fewer epochs:
compare them with the ANN of the same row.
"""


# Results as lines of a CSV: one for each seed, or one without a number.


def _lines(result: Result) -> list[dict[str, Any]]:
    shared = {f.name: getattr(result, f.name) for f in fields(result) if f.name not in ("accuracies", "digests")}
    shared["versions"] = json.dumps(result.versions)
    numbers: list[tuple[Any, str]] = list(zip(result.accuracies, result.digests, strict=True)) or [("", "")]
    return [{**shared, "accuracy": accuracy, "digest": digest} for accuracy, digest in numbers]


def _results(lines: Sequence[Mapping[str, str]]) -> list[Result]:
    grouped: dict[tuple[str, str, str], list[Mapping[str, str]]] = {}
    for line in lines:
        grouped.setdefault((line["recipe"], line["preset"], line["column"]), []).append(line)
    return [_from_lines(same) for same in grouped.values()]


def _from_lines(same: Sequence[Mapping[str, str]]) -> Result:
    line = same[0]

    def number(name: str) -> float | None:
        return float(line[name]) if line[name] else None

    def whole(name: str) -> int | None:
        return int(float(line[name])) if line[name] else None

    return Result(
        recipe=line["recipe"],
        paper=line["paper"],
        network=line["network"],
        column=line["column"],
        dataset=line["dataset"],
        images=whole("images"),
        timesteps=whole("timesteps"),
        published_timesteps=whole("published_timesteps"),
        published=number("published"),
        accuracies=tuple(float(one["accuracy"]) for one in same if one["accuracy"]),
        test_images=whole("test_images"),
        preset=line["preset"],
        device=line["device"],
        wall_seconds=number("wall_seconds"),
        created=line["created"],
        digests=tuple(one["digest"] for one in same if one["digest"]),
        versions=json.loads(line["versions"]),
        note=line["note"],
    )
