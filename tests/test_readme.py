"""What the documents say can be done: commands parse, targets, links and files exist, examples in Python run."""

import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import click
import pytest
from click.core import ParameterSource

from hybridsnn.cli import command_line
from hybridsnn.cli.showing import REGISTRIES
from hybridsnn.config import resolve
from hybridsnn.recipes.recipe import load_recipe
from hybridsnn.stages import STAGES
from hybridsnn.stages.base import Environment, execute

ROOT = Path(__file__).parent.parent
DOCUMENTS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.is_file()]
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(r"`((?:hybridsnn|tests|docs|pipelines|benchmarks)/[\w./-]*|(?:setup\.cfg|pyproject\.toml|Makefile))`")

pytestmark = pytest.mark.skipif(not DOCUMENTS, reason="there is no README yet")
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def prose(document: Path) -> str:
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def blocks(document: Path, *languages: str) -> list[str]:
    found = FENCE.findall(document.read_text(encoding="utf-8"))
    return [text for language, text in found if language in languages]


def commands(document: Path) -> Iterator[list[str]]:
    """The words of every command in a block of shell; what `$ ` does not lead in a console is output."""
    for language in ("sh", "bash", "console"):
        for block in blocks(document, language):
            for line in block.replace("\\\n", " ").splitlines():
                if language == "console":
                    if not line.startswith("$ "):
                        continue
                    line = line.removeprefix("$ ")
                words: list[str] = []
                for word in [*shlex.split(line, comments=True), ";"]:
                    if word in (";", "&&", "|", ">"):
                        if words:
                            yield words
                        words = []
                    elif words or not re.fullmatch(r"[A-Z_]+=.*", word):  # variables may lead
                        words.append(word)


def check(arguments: list[str]) -> None:
    """Parse a `hybridsnn` command as it would be, and check its settings, without running it."""
    group = click.Context(command_line, info_name="hybridsnn")
    if not arguments or arguments[0].startswith("--"):
        command_line.make_context("hybridsnn", list(arguments))
        return
    name, *rest = arguments
    command = command_line.get_command(group, name)
    assert command is not None, f"no command {name}"
    ctx = command.make_context(name, rest, parent=group)
    if name in STAGES:
        given = {
            key: value
            for key, value in ctx.params.items()
            if key in {*STAGES[name].config.model_fields, *STAGES[name].config.options()}
            and ctx.get_parameter_source(key) != ParameterSource.DEFAULT
        }
        resolve(STAGES[name].config, given, name)
    elif name == "run":
        load_recipe(ROOT / ctx.params["recipe"], ctx.params["overrides"])
    elif name == "list":
        assert ctx.params["registry"] in (None, *REGISTRIES)


@each_document
def test_commands_are_understood(document: Path) -> None:
    for words in commands(document):
        match words:
            case ["hybridsnn", *arguments] if not {"--help", "--version"}.intersection(arguments):
                try:
                    check(arguments)
                except Exception as error:
                    raise AssertionError(f"{' '.join(words)}: {error}") from error
            case ["make", *arguments]:
                targets = [word for word in arguments if "=" not in word]
                assert TARGETS.issuperset(targets), " ".join(words)
            case ["python" | "python3", script, *_] if not script.startswith("-"):
                assert (ROOT / script).is_file(), " ".join(words)
            case [
                "./" | "cd" | "git" | "pip" | "hybridsnn" | "python" | "python3" | "export" | "torchrun" | "nvcc",
                *_,
            ]:
                pass
            case _:
                raise AssertionError(f"{document.name}: what is `{' '.join(words)}`?")


@pytest.mark.parametrize(
    "command",
    [
        "convert --balance mix", "convert --balances max", "convert --timesteps x", "finetune --method stbd",
        "run pipelines/none.yaml", "run pipelines/demo.yaml --set ann.epoch=3", "list method", "covert", "--quiet",
    ],
)  # fmt: skip
def test_a_wrong_command_would_be_noticed(command: str) -> None:
    with pytest.raises(Exception):  # noqa: B017 (whatever the parser, the settings or an assertion says)
        check(command.split())


def test_commands_within_sentences_exist() -> None:
    for document in DOCUMENTS:
        for name in re.findall(r"`hybridsnn ([a-z-]+)[^`]*`", prose(document)):
            assert name in {*STAGES, *command_line.commands}, f"{document.name}: hybridsnn {name}"
        for target in re.findall(r"`make ([\w-]+)[^`]*`", prose(document)):
            assert target in TARGETS, f"{document.name}: make {target}"


def headings(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_document
def test_links_and_files_exist(document: Path) -> None:
    for target in LINK.findall(prose(document)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path) if path else document
        assert linked.exists(), f"{document.name}: {target}"
        assert not anchor or anchor in headings(linked), f"{document.name}: {target}"
    for path in FILE.findall(prose(document)):
        assert (ROOT / path).exists(), f"{document.name}: {path}"


@each_document
def test_recipes_and_options_in_prose_exist(document: Path) -> None:
    recipes = {path.name for path in (ROOT / "pipelines").iterdir()}
    for name in re.findall(r"`([\w-]+\.yaml)`", prose(document)):
        assert name in recipes | {"config.yaml"}, f"{document.name}: {name}"
    group = click.Context(command_line)
    known = {"--help", *(option for param in command_line.params for option in param.opts)}
    for name in (*STAGES, *command_line.commands):
        command = command_line.get_command(group, name)
        assert command is not None
        known |= {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    for option in re.findall(r"`(--[a-z-]+)", prose(document)):
        assert option in known, f"{document.name}: {option}"


@each_document
def test_python_examples_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = blocks(document, "python")
    if not examples:
        pytest.skip("no example in Python")
    monkeypatch.chdir(tmp_path)
    if any("checkpoints/" in example for example in examples):
        make_default_run(tmp_path / "checkpoints" / "default")
    namespace: dict[str, object] = {"__name__": "__main__"}
    with ExitStack() as stack:
        for module, attribute in REGISTRIES.values():  # to which examples may add
            stack.enter_context(patch.dict(getattr(import_module(module), attribute)))
        for number, example in enumerate(examples):  # one after another, as a reader would
            exec(compile(example, f"{document.name}, example {number + 1}", "exec"), namespace)


def make_default_run(run: Path) -> None:
    """What the three commands leave behind, small."""
    parents = []
    for name, settings in (
        ("train-ann", {"width": 0.25, "epochs": 1}),
        ("convert", {"timesteps": 4, "calibration_images": 32}),
        ("finetune", {"epochs": 1}),
    ):
        stage = STAGES[name]
        config = resolve(stage.config, settings, name)
        parents = [execute(stage, config, parents, run, Environment(device="cpu"))[0]]
