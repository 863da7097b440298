"""Options: fields of what is chosen become settings of the one who chooses."""

from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field, ValidationError, model_validator

from hybridsnn.config import Choice, canonical, config_hash, from_yaml, resolve, to_yaml
from hybridsnn.errors import ConfigError
from hybridsnn.options import Options, OptionSettings


class Shape(Options):
    """What shapes have in common."""

    colour: Annotated[str, Choice({"red": 1, "blue": 2}, "colour")] = Field("red", description="Of the surface.")


class Ring(Shape):
    inner: float = Field(1.0, gt=0, description="Inner radius.")
    outer: float = Field(2.0, gt=0, description="Outer radius.")

    @model_validator(mode="after")
    def _has_a_width(self) -> "Ring":
        if self.inner >= self.outer:
            raise ValueError(f"inner is {self.inner}, must be below outer, {self.outer}")
        return self


class Grid(Shape):
    cells: int = Field(description="How many.")
    colour: Annotated[str, Choice({"red": 1, "blue": 2}, "colour", lambda entry: entry == 2)] = Field("blue")


SHAPES: dict[str, type[Shape]] = {"ring": Ring, "grid": Grid}


class Drawing(OptionSettings):
    chooser: ClassVar[str] = "shape"

    shape: Annotated[str, Choice(SHAPES, "shape")] = Field("ring", description="What to draw.")
    seed: int = Field(0, description="Seed.")


def drawing(**values: Any) -> Drawing:
    return resolve(Drawing, values, "draw")


def test_settings_hold_the_options_of_what_is_chosen() -> None:
    assert drawing().model_dump() == {"shape": "ring", "seed": 0, "colour": "red", "inner": 1.0, "outer": 2.0}
    grid = drawing(shape="grid", cells=3)
    assert grid.model_dump() == {"shape": "grid", "seed": 0, "colour": "blue", "cells": 3}
    assert grid.chosen() == Grid(cells=3) and Drawing().chosen() == Ring()
    assert canonical(grid) == grid.model_dump()
    assert from_yaml(Drawing, to_yaml(grid), "draw") == grid
    assert config_hash(grid) != config_hash(drawing(shape="grid", cells=4))
    assert {name: list(of) for name, of in Drawing.options().items()} == {
        "colour": ["ring", "grid"], "inner": ["ring"], "outer": ["ring"], "cells": ["grid"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": 0}, "draw.inner: got 0, must be greater than 0 with shape 'ring'"),
        ({"cells": 3}, "draw.cells: 'ring' has no such option; it belongs to grid. Leave it out"),
        ({"innr": 1}, "draw: unknown 'innr'. Did you mean 'inner'? Choices: colour, inner, outer, seed, shape"),
        ({"shape": "grid"}, "draw.cells: is required with shape 'grid'"),
        ({"shape": "grid", "cells": 1, "colour": "red"}, "draw.colour: got 'red', must be blue with shape 'grid'"),
        ({"shape": "grid", "cells": 1, "colour": "rad"}, "draw.colour: unknown 'rad'. Choices: blue"),
        ({"inner": 2, "outer": 1}, "draw: Ring: inner is 2.0, must be below outer, 1.0"),
        ({"shape": "rng", "seed": "x", "cells": "y"}, "draw.shape: unknown 'rng'. Did you mean 'ring'? Choices: grid, "
         "ring; draw.seed: got 'x', must be a valid integer; draw.cells: got 'y', must be a valid integer"),
        ({"shape": 3}, "draw.shape: got 3, must be a valid string"),
        ({"shape": ["ring"]}, "draw.shape: got ['ring'], must be a valid string"),
    ],
)  # fmt: skip
def test_every_problem_is_told_with_whose_option_it_is(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        drawing(**values)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Ring, {"inner": 0}, "Ring.inner: got 0, must be greater than 0"),
        (Ring, {"inner": "1"}, "Ring.inner: got '1', must be a valid number"),
        (Ring, {"cells": 1}, "Ring: unknown 'cells'. Choices: colour, inner, outer"),
        (Ring, {"inner": 2, "outer": 1}, "Ring: inner is 2.0, must be below outer, 1.0"),
        (Grid, {}, "Grid.cells: is required"),
    ],
)
def test_python_arguments_are_checked_alike(kind: type[Options], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        kind(**values)
    assert str(error.value) == message


def test_options_do_not_change() -> None:
    ring = Ring(inner=1)
    with pytest.raises(ValidationError, match="frozen"):
        ring.inner = 2.0  # type: ignore[misc]


def test_what_is_registered_later_is_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    class Disc(Options):
        radius: float = 1.0

    with pytest.raises(ConfigError, match="unknown 'disc'"):
        drawing(shape="disc")
    monkeypatch.setitem(SHAPES, "disc", Disc)  # type: ignore[arg-type]
    assert drawing(shape="disc", radius=2).chosen() == Disc(radius=2.0)
    with pytest.raises(ConfigError, match=r"^draw\.colour: 'disc' has no such option; it belongs to ring, grid\."):
        drawing(shape="disc", colour="red")


def test_names_are_not_shared_with_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dots(Options):
        seed: int = 1

    monkeypatch.setitem(SHAPES, "dots", Dots)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^shape 'dots': the name of the option 'seed' is taken; give"):
        drawing(shape="dots")
