"""The house's order: imports point one way, and only `cli` prints, exits or knows the terminal."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import hybridsnn

ROOT = Path(hybridsnn.__file__).parent
FLOORS = [
    {"errors", "registry", "config", "options", "artifacts", "kernels", "memory", "checkpoint"},
    {"activations", "surrogates", "neurons", "encoders", "batch"},
    {"program"},
    {"networks", "model"},
    {"conversion", "learning", "data", "evaluation", "reporting", "exporters"},
    {"stages"},
    {"recipes"},
    {"cli"},
]
FLOOR = {part: place for place, parts in enumerate(FLOORS) for part in parts}
SIBLINGS = FLOORS[4]
MODULES = sorted(ROOT.rglob("*.py"))
TERMINAL = {"click", "rich"}
ENDINGS = {"print", "exit", "quit", "sys.exit", "os._exit", "sys.stdout.write"}


def part_of(module: Path) -> str:
    """The part of the house a file belongs to: a name of `FLOORS`, or "" for the package's own `__init__`."""
    return module.relative_to(ROOT).parts[0].removesuffix(".py").replace("__init__", "")


@cache
def parsed(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


def imports(module: Path) -> Iterator[tuple[str, str | None]]:
    """(module, name) of every import, wherever it stands; name is None for `import module`."""
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name}: relative import"
            yield from ((str(node.module), alias.name) for alias in node.names)


def parts_imported(module: Path) -> Iterator[str]:
    for path, name in imports(module):
        names = path.split(".")
        if names[0] == "hybridsnn":
            if len(names) > 1:
                yield names[1]
            elif name in FLOOR:
                yield str(name)


def test_every_part_has_its_floor() -> None:
    assert {part_of(module) for module in MODULES} - {"", *FLOOR} == set()
    assert len(MODULES) > 20


def test_imports_point_one_way() -> None:
    wrong = []
    for module in MODULES:
        part = part_of(module)
        for imported in set(parts_imported(module)) - {part}:
            if not part:
                reason = "the package's __init__ imports nothing, so that the command line starts fast"
            elif FLOOR[imported] > FLOOR[part]:
                reason = "a floor above"
            elif part in SIBLINGS and imported in SIBLINGS:
                reason = "a sibling"
            elif part in {"errors", "registry"} and imported in FLOORS[0] - {"errors"}:
                reason = "more than errors"
            elif part == "kernels" and imported in {"config", "artifacts"}:
                reason = "not for kernels"
            else:
                continue
            wrong.append(f"{module.relative_to(ROOT)} imports {imported}: {reason}")
    assert not wrong


def test_only_the_top_touches_disk_and_terminal() -> None:
    wrong = []
    for module in MODULES:
        part, used = part_of(module), set()
        if part not in {"artifacts", "stages", "recipes", "cli"}:
            used |= {f"{name} of artifacts" for path, name in imports(module) if path == "hybridsnn.artifacts"}
            used |= {"artifacts" for path, name in imports(module) if (path, name) == ("hybridsnn", "artifacts")}
        if part != "cli":
            used |= {path.split(".")[0] for path, _ in imports(module)} & TERMINAL
            for node in ast.walk(parsed(module)):
                if isinstance(node, ast.Call):
                    used |= {ast.unparse(node.func)} & ENDINGS
                elif isinstance(node, ast.Name):
                    used |= {node.id} & {"SystemExit"}
        wrong += [f"{module.relative_to(ROOT)} uses {what}" for what in sorted(used)]
    assert not wrong


def test_imports_form_no_cycle() -> None:
    """Between the parts of one floor too."""
    edges = {
        part: {imported for module in MODULES if part_of(module) == part for imported in parts_imported(module)}
        - {part}
        for part in FLOOR
    }
    done: set[str] = set()
    while len(done) < len(edges):
        free = {part for part, needs in edges.items() if part not in done and needs <= done}
        assert free, f"a cycle among {sorted(set(edges) - done)}"
        done |= free
