"""Artifacts: written whole or not at all, opened only if untouched, identified by what made them."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_stages import TOYS, SmallConfig, TrainConfig, snapshot

from hybridsnn.artifacts import (
    Artifact,
    Draft,
    artifacts_in,
    draft,
    find,
    key_of,
    lineage,
    newest,
    scratch_folder,
    write_json,
)
from hybridsnn.config import StageConfig
from hybridsnn.errors import ArtifactError
from hybridsnn.stages.base import Environment, Stage, default_parents, execute


def make(
    stage: str, folder: Path, *parents: Artifact, config: StageConfig | None = None, name: str | None = None
) -> Artifact:
    return execute(TOYS[stage], config or TOYS[stage].config(), parents, folder, Environment(), name=name)[0]


def edit(artifact: Artifact, **changes: object) -> None:
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    (artifact.path / "manifest.json").write_text(json.dumps(manifest | changes))


def flip(artifact: Artifact) -> None:
    content = bytearray((artifact.path / "weights.txt").read_bytes())
    content[0] ^= 1
    (artifact.path / "weights.txt").write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Artifact], object], str]] = {
    "flipped bit": (flip, "'weights.txt' is damaged"),
    "missing file": (lambda a: (a.path / "weights.txt").unlink(), "'weights.txt' is missing"),
    "missing nested file": (lambda a: (a.path / "nested/note.txt").unlink(), "'nested/note.txt' is missing"),
    "extra file": (lambda a: (a.path / "extra.txt").touch(), "'extra.txt' is not in the manifest"),
    "no manifest": (lambda a: (a.path / "manifest.json").unlink(), "is not an artifact: it has no manifest.json"),
    "cut manifest": (lambda a: (a.path / "manifest.json").write_text("{"), "manifest.json: unreadable"),
    "list for manifest": (lambda a: (a.path / "manifest.json").write_text("[]"), "manifest.json: unreadable"),
    "binary manifest": (lambda a: (a.path / "manifest.json").write_bytes(b"\xff\x00"), "manifest.json: unreadable"),
    "unknown key": (lambda a: edit(a, mood="good"), "manifest.json: mood: unknown key"),
    "wrong type": (lambda a: edit(a, wall_seconds="long"), "manifest.json: wall_seconds: "),
    "newer schema": (lambda a: edit(a, schema_version=2), "schema version 2; this hybridsnn reads up to 1"),
    "file outside": (lambda a: edit(a, files={"../x": "0"}), "'../x' lies outside of the artifact"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_in_one_line_and_nothing_changes(damage: str, tmp_path: Path) -> None:
    artifact = make("toy-train", tmp_path)
    spoil, message = DAMAGES[damage]
    spoil(artifact)
    before = snapshot(tmp_path)
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(artifact.path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before


def test_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    artifact = make("toy-train", tmp_path)
    assert Artifact.open(artifact.path, kinds=("ann", "snn")) == artifact
    with pytest.raises(ArtifactError, match="is of kind ann, wanted snn"):
        Artifact.open(artifact.path, kinds=("snn",))


def test_a_missing_folder_lists_its_neighbours(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no artifacts; make one with `hybridsnn train-ann`"):
        Artifact.open(tmp_path / "ann")
    make("toy-train", tmp_path)
    with pytest.raises(ArtifactError, match="holds ann; name one of those"):
        Artifact.open(tmp_path / "anm")


def test_only_files_of_the_manifest_can_be_asked_for(tmp_path: Path) -> None:
    artifact = make("toy-train", tmp_path)
    assert artifact.file("nested/note.txt").read_text() == "nested\n"
    with pytest.raises(ArtifactError, match=r"has no file 'model.json'; it holds config.yaml"):
        artifact.file("model.json")


def test_an_artifact_says_what_made_it(tmp_path: Path) -> None:
    ann = make("toy-train", tmp_path / "a", config=TrainConfig(seed=7))
    snn = make("toy-convert", tmp_path / "b", ann)
    assert ann.manifest.seed == 7
    assert ann.manifest.data is not None and ann.manifest.data.name == "toy-data"
    assert ann.config()["seed"] == 7
    assert ann.manifest.peak_memory_bytes > 2**20
    assert {"hybridsnn", "python", "torch"} <= set(ann.manifest.versions)
    (parent,) = snn.manifest.parents
    assert (parent.path, parent.digest, parent.name) == ("../../a/ann", ann.digest, "ann")
    assert Artifact.open(snn.path) == snn
    assert lineage(snn) == [ann, snn]


def test_lineage_refuses_a_parent_that_has_changed(tmp_path: Path) -> None:
    ann = make("toy-train", tmp_path)
    snn = make("toy-convert", tmp_path, ann)
    edit(ann, files={})
    with pytest.raises(ArtifactError, match="is no longer what"):
        lineage(snn)


def test_the_digest_is_of_the_content_only(tmp_path: Path) -> None:
    first, again = make("toy-train", tmp_path / "a"), make("toy-train", tmp_path / "b", name="other")
    changed = make("toy-train", tmp_path / "c", config=TrainConfig(epochs=1))
    assert first.digest == again.digest
    assert first.digest != changed.digest


def test_the_key_sees_stage_settings_parents_version_and_the_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, other = make("toy-train", tmp_path), make("toy-train", tmp_path, config=TrainConfig(epochs=1))
    base = key_of("s", TrainConfig(), [ann])
    assert key_of("s", TrainConfig(weights=Path("elsewhere")), [ann]) == base
    different = [
        key_of("t", TrainConfig(), [ann]),
        key_of("s", TrainConfig(epochs=4), [ann]),
        key_of("s", TrainConfig(), [other]),
        key_of("s", TrainConfig(), [ann, other]),
        key_of("s", TrainConfig(), [other, ann]),
        key_of("s", TrainConfig(), [ann], {"weights": "1"}),
        key_of("s", TrainConfig(), [ann], {"weights": "2"}),
    ]
    monkeypatch.setattr(draft, "__version__", "9")
    different.append(key_of("s", TrainConfig(), [ann]))
    assert len({base, *different}) == len(different) + 1


def test_what_is_current_is_not_made_again(tmp_path: Path) -> None:
    config, environment = TrainConfig(), Environment()
    first, made = execute(TOYS["toy-train"], config, (), tmp_path, environment)
    before = snapshot(tmp_path)
    second, made_again = execute(TOYS["toy-train"], config, (), tmp_path, environment, name="another")
    assert (made, made_again) == (True, False)
    assert second == first
    assert snapshot(tmp_path) == before
    assert set(before) == {"ann"} | {f"ann/{name}" for name in [*first.manifest.files, "manifest.json", "nested"]}


def test_a_current_but_damaged_artifact_is_an_error(tmp_path: Path) -> None:
    flip(make("toy-train", tmp_path))
    with pytest.raises(ArtifactError, match="damaged"):
        make("toy-train", tmp_path)


def test_other_data_is_another_result(tmp_path: Path) -> None:
    stage, config = TOYS["toy-outside"], SmallConfig()
    made = [execute(stage, config, (), tmp_path, Environment(data=Path(data)))[1] for data in ("a", "a", "b")]
    assert made == [True, False, True]


def test_a_taken_name_gets_a_number_and_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "ann-2").mkdir()
    names = [make("toy-train", tmp_path, config=TrainConfig(epochs=epochs)).path.name for epochs in (1, 2, 3)]
    assert names == ["ann", "ann-3", "ann-4"]
    assert [artifact.name for artifact in artifacts_in(tmp_path)] == names


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "a b"])
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="name: got"):
        Draft.begin(tmp_path, name, "0" * 64)
    assert snapshot(tmp_path) == {}


def test_a_failed_stage_leaves_no_trace(tmp_path: Path) -> None:
    before = make("toy-train", tmp_path), snapshot(tmp_path)
    with pytest.raises(ValueError, match="broken"):
        make("toy-fail", tmp_path)
    assert snapshot(tmp_path) == before[1]


def test_an_interrupted_stage_leaves_its_scratch_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Listener:
        def track(self, iterable, description, total):  # type: ignore[no-untyped-def]
            yield from iterable

        def say(self, text: str) -> None:
            said.append(text)

    stage, config, environment = TOYS["toy-train"], TrainConfig(), Environment(progress=Listener())
    key = stage.key(config, (), environment)
    monkeypatch.setenv("TOY_INTERRUPT_AT", "2")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            execute(stage, config, (), tmp_path, environment)
    scratch = scratch_folder(tmp_path, key)
    assert set(snapshot(tmp_path)) == {scratch.name, f"{scratch.name}/epochs.json", f"{scratch.name}/seconds.txt"}
    monkeypatch.delenv("TOY_INTERRUPT_AT")
    assert execute(stage, config, (), tmp_path, environment)[1]
    assert not scratch.exists()

    monkeypatch.setenv("TOY_INTERRUPT_AT", "2")
    with pytest.raises(KeyboardInterrupt):
        execute(stage, config, (), tmp_path / "fresh", environment)
    monkeypatch.delenv("TOY_INTERRUPT_AT")
    execute(stage, config, (), tmp_path / "fresh", environment, fresh=True)
    assert said == ["resumed at 2", "resumed at 0"]


def test_a_killed_process_leaves_nothing_that_counts(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from toy_stages import *; from hybridsnn.stages.base import *;"
        f"execute(TOYS['toy-train'], TrainConfig(), (), Path({str(tmp_path)!r}), Environment())"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    killed = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "TOY_KILL_AT": "2", "PYTHONPATH": paths}
    )
    assert killed.returncode == 9
    key = TOYS["toy-train"].key(TrainConfig(), (), Environment())
    assert scratch_folder(tmp_path, key).is_dir()
    assert any(name.startswith(".tmp-") for name in snapshot(tmp_path))
    assert artifacts_in(tmp_path) == []
    artifact = make("toy-train", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ann"]
    assert Artifact.open(artifact.path).manifest.files == artifact.manifest.files


def test_two_at_once_make_one(tmp_path: Path) -> None:
    begun, go_on, runs = threading.Event(), threading.Event(), []

    def slow(work: object) -> None:
        runs.append(work)
        begun.set()
        assert go_on.wait(10)

    waited: list[str] = []

    class Listener:
        def track(self, iterable, description, total):  # type: ignore[no-untyped-def]
            yield from iterable

        def say(self, text: str) -> None:
            waited.append(text)
            go_on.set()

    stage = Stage("slow", "Wait.", SmallConfig, (), "ann", slow, lambda config, parents: "slow")
    results: list[tuple[Artifact, bool]] = []

    def start() -> threading.Thread:
        thread = threading.Thread(
            target=lambda: results.append(execute(stage, SmallConfig(), (), tmp_path, Environment(progress=Listener())))
        )
        thread.start()
        return thread

    first = start()
    assert begun.wait(10)
    second = start()
    first.join(10)
    second.join(10)
    assert [made for _, made in results] in ([True, False], [False, True])
    assert len(runs) == 1
    assert waited == ["slow: another process is making the same artifact; waiting for it"]
    assert [path.name for path in tmp_path.iterdir()] == ["slow"]


def test_a_name_taken_while_working_is_not_overwritten(tmp_path: Path) -> None:
    with Draft.begin(tmp_path, "ann", "0" * 64) as draft:
        taken = make("toy-train", tmp_path)
        before = snapshot(taken.path)
        artifact = draft.commit(
            kind="ann", stage="s", config=SmallConfig(), parents=(), data=None, device="cpu", wall_seconds=0.0,
            peak_memory_bytes=0,
        )  # fmt: skip
    assert artifact.path.name == artifact.name == "ann-2"
    assert snapshot(taken.path) == before


def test_the_default_parent_is_the_newest_that_fits(tmp_path: Path) -> None:
    def names(stage: str) -> list[list[str]]:
        return [[a.name for a in parents] for parents in default_parents(TOYS[stage], tmp_path, TOYS)]

    assert names("toy-train") == [[]]
    ann = make("toy-train", tmp_path)
    converted = make("toy-convert", tmp_path, ann)
    make("toy-tune", tmp_path, converted)
    assert names("toy-convert") == [["ann"]]
    assert names("toy-tune") == [["converted"]]  # not 'tuned', which a repeated command would chain to
    assert names("toy-evaluate") == [["ann"], ["converted"], ["tuned"]]
    newer = make("toy-convert", tmp_path, ann, config=SmallConfig(value=2))
    assert names("toy-tune") == [[newer.name]]
    evaluations = [make("toy-evaluate", tmp_path, parent).name for parent in (ann, newer)]
    assert names("toy-report") == [evaluations]


def test_without_a_fitting_parent_the_command_that_makes_one_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with pytest.raises(ArtifactError, match=r"demo holds no artifacts; make one with `hybridsnn toy-train --run demo`"):
        default_parents(TOYS["toy-convert"], folder, TOYS)
    make("toy-train", folder)
    with pytest.raises(
        ArtifactError, match=r"kind snn; .*demo holds ann \(ann\); make one with `hybridsnn toy-convert"
    ):
        default_parents(TOYS["toy-tune"], folder, TOYS)


def test_parents_must_fit(tmp_path: Path) -> None:
    ann, other = make("toy-train", tmp_path), make("toy-train", tmp_path, config=TrainConfig(epochs=1))
    before = snapshot(tmp_path)
    for stage, parents, message in [
        ("toy-tune", [ann], "is of kind ann, wanted snn"),
        ("toy-train", [ann], "wanted no artifact at all"),
        ("toy-convert", [], "needs an artifact of kind ann, got none"),
        ("toy-convert", [ann, other], "takes one artifact, got ann, ann-2"),
    ]:
        with pytest.raises(ArtifactError, match=message):
            make(stage, tmp_path, *parents)
    assert snapshot(tmp_path) == before


def test_unreadable_artifacts_do_not_hide_and_do_not_block(tmp_path: Path) -> None:
    ann = make("toy-train", tmp_path)
    edit(make("toy-train", tmp_path, config=TrainConfig(epochs=1)), schema_version=2)
    (tmp_path / "a-file").touch()
    (tmp_path / "other").mkdir()
    assert artifacts_in(tmp_path) == [ann]
    assert find(tmp_path, ann.manifest.key) == ann
    with pytest.raises(ArtifactError, match="schema version 2"):  # it may be the newest
        newest(tmp_path, ("ann",))


def test_json_is_the_same_whatever_the_order(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"a": 1, "b": [1.5, None]})
    write_json(tmp_path / "b", {"b": [1.5, None], "a": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads((tmp_path / "a").read_text()) == {"a": 1, "b": [1.5, None]}
