"""The page and the table of many recipes: every number, network and digest, escaped, readable without anything else."""

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest

from hybridsnn.errors import ArtifactError
from hybridsnn.reporting import Result, as_text, markdown, results_table, write_table_page
from hybridsnn.reporting.recipe_figure import recipe_figure

TUNED = Result(
    recipe="cifar10-vgg5", paper="hybrid", network="VGG5", column="hybrid", dataset="imagefolder:cifar10-jpeg",
    images=47_500, timesteps=5, published_timesteps=75, published=86.91, accuracies=(84.0, 85.0, 86.0),
    test_images=10_000, preset="laptop", device="cpu", wall_seconds=75.0, created="2025-03-01",
    digests=("0123456789abcdef" * 4, "fedcba9876543210" * 4, "00112233445566778899aabbccddeeff" * 2),
    versions={"hybridsnn": "9.8.7"},
)  # fmt: skip
TRAINED = replace(
    TUNED, column="ANN", timesteps=None, published_timesteps=None, published=87.88, accuracies=(88.25,),
    digests=("a1b2c3d4e5f60718" * 4,),
)  # fmt: skip
MISSING = replace(
    TUNED, recipe="cifar100-vgg11", network="VGG11", dataset="cifar100", images=None, timesteps=125,
    published_timesteps=125, published=67.87, accuracies=(), test_images=None, wall_seconds=None, digests=(),
    note="cifar100 is not in <DATA>: download it",
)  # fmt: skip
STOP = replace(
    TUNED, recipe="mnist-lenet5-scratch", paper="STOP", network="LeNet-5", column="from scratch", dataset="mnist",
    published=99.53, accuracies=(99.47,), digests=("5566778899aabbcc" * 4,), published_timesteps=None, preset="full",
)  # fmt: skip
ALL = [TRAINED, TUNED, MISSING, STOP]


def test_mean_spread_and_difference_are_known():
    assert (TUNED.mean, TUNED.spread) == (85.0, 1.0)
    assert TUNED.difference == pytest.approx(-1.91)
    assert (TRAINED.mean, TRAINED.spread) == (88.25, None)
    assert (MISSING.mean, MISSING.spread, MISSING.difference) == (None, None, None)
    assert replace(TUNED, published=None).difference is None


def test_results_table_is_known():
    table = as_text(results_table(ALL))
    shown = ["column", "published (%)", "ours (%)", "± (%)", "difference (points)", "T", "T published", "seeds"]
    assert table[shown].to_numpy().tolist() == [
        ["ANN", "87.88", "88.25", "–", "+0.37", "–", "–", "1"],
        ["hybrid", "86.91", "85.00", "1.00", "−1.91", "5", "75", "3"],
        ["hybrid", "67.87", "–", "–", "–", "125", "125", "0"],
        ["from scratch", "99.53", "99.47", "–", "−0.06", "5", "–", "1"],
    ]
    assert table[["to its ANN (points)", "published to its ANN (points)"]].to_numpy().tolist() == [
        ["–", "–"],
        ["−3.25", "−0.97"],  # its ANN has 88.25, the paper's 87.88
        ["–", "–"],
        ["–", "–"],
    ]
    rest = ["paper", "recipe", "network", "data set", "images", "test images", "preset", "device", "wall time (s)"]
    assert table[rest].iloc[1].tolist() == [
        "hybrid", "cifar10-vgg5", "VGG5", "imagefolder:cifar10-jpeg", "47,500", "10,000", "laptop", "cpu", "75.0",
    ]  # fmt: skip
    assert table["note"].tolist() == ["–", "–", "cifar100 is not in <DATA>: download it", "–"]
    assert markdown(results_table(ALL)).count("\n") == 2 + len(ALL)


def test_results_table_of_what_was_not_run_has_the_same_columns():
    assert list(results_table([MISSING]).columns) == list(results_table(ALL).columns)


def test_only_an_ann_of_the_same_recipe_and_preset_is_its_own():
    alone, elsewhere = replace(TUNED, recipe="cifar10-vgg9"), replace(TUNED, preset="full")
    unpublished, unmeasured = replace(TUNED, published=None), replace(TUNED, accuracies=(), digests=())
    shown = as_text(results_table([TRAINED, alone, elsewhere, unpublished, unmeasured]))
    assert shown["to its ANN (points)"].tolist() == ["–", "–", "–", "−3.25", "–"]
    assert shown["published to its ANN (points)"].tolist() == ["–", "–", "–", "–", "−0.97"]


def page_of(folder, results, curves=None):
    """The page as text, and as read by a parser that has seen every element closed in its turn."""
    write_table_page("A <title>", results, curves or {}, folder / "table" / "index.html")
    page = (folder / "table" / "index.html").read_text(encoding="utf-8")
    reader = Page()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return page, reader


def test_page_holds_everything_and_stands_alone(tmp_path):
    curves = {("cifar10-vgg5", "hybrid"): pd.Series([20.0, 60.0, 80.0, 84.0, 85.0], index=range(1, 6))}
    page, reader = page_of(tmp_path, ALL, curves)
    assert reader.title == reader.heading == "A <title>"
    for result in ALL:
        for text in (result.recipe, result.network, result.column, result.dataset, result.device, result.paper):
            assert text in reader.text
        assert f"{result.published:.2f}" in reader.text
        for digest in result.digests:
            assert digest[:12] in reader.text
            assert digest in reader.titles
        assert result.note in reader.text
    for number in ("88.25", "85.00 ± 1.00", "99.47", "47,500 training images", "10,000 test images", "1 min 15 s"):
        assert number in reader.text
    assert "hybridsnn 9.8.7" in reader.text
    assert "://" not in page and "<script" not in page and "<DATA>" not in page and "<title>A" in page
    assert not re.findall(r'(?:src|href)="(?!#)|url\((?!#)', page)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(reader.ids)
    assert [name for name, count in reader.ids.items() if count > 1] == []
    (drawing,) = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    ElementTree.fromstring(drawing)


def test_rows_are_held_against_their_own_ann_and_told_apart(tmp_path):
    _, reader = page_of(tmp_path, ALL)
    assert reader.rows["ANN", "88.25"]["to its ANN (paper's)"] == "–"
    tuned = reader.rows["hybrid", "85.00 ± 1.00"]
    assert tuned["to the paper"] == "(−1.91)"  # with the preset laptop
    assert tuned["to its ANN (paper's)"] == "−3.25 (−0.97)"
    assert tuned["T (paper's)"] == "5 (75)"
    assert reader.rows["from scratch", "99.47"]["to the paper"] == "−0.06"
    assert reader.rows["from scratch", "99.47"]["to its ANN (paper's)"] == "–"
    assert reader.rows["hybrid", "not run"] == {"published": "67.87", "ours": "not run", "T (paper's)": "125 (125)"}


def test_page_warns_of_the_laptop_preset_only_where_there_is_any(tmp_path):
    for results, warned in ((ALL, True), ([STOP], False), ([MISSING], False)):
        _, reader = page_of(tmp_path, results)
        assert ("not comparable with the paper" in reader.text) == warned


def test_missing_rows_are_set_apart(tmp_path):
    page, reader = page_of(tmp_path, ALL)
    assert len(re.findall(r'<tr role="row" class="missing">', page)) == 1
    assert "3 measured, 1 not run" in reader.text


def test_results_of_one_recipe_are_brought_together(tmp_path):
    page, _ = page_of(tmp_path, [TRAINED, MISSING, STOP, TUNED])
    assert page.count("<article") == 3
    first = page[page.index("<article") : page.index("</article>")]
    assert "88.25" in first and "85.00 ± 1.00" in first and "VGG11" not in first


def test_figure_has_a_curve_a_column_and_the_ann():
    curve = pd.Series([20.0, 60.0, 85.0], index=[1, 2, 3])
    assert recipe_figure({}, 88.0) is None
    assert recipe_figure({"hybrid": curve[:0]}, 88.0) is None
    (axes,) = recipe_figure({"conversion": curve - 5, "hybrid": curve}, 88.0).axes
    assert [line.get_ydata()[-1] for line in axes.lines] == [80.0, 85.0, 88.0]
    texts = [text.get_text().split("\u2002") for text in axes.get_legend().get_texts()]
    assert texts == [["80.00 %", "conversion"], ["85.00 %", "hybrid"], ["88.00 %", "ANN"]]
    assert len(recipe_figure({"hybrid": curve}, None).axes[0].lines) == 1


def test_same_results_same_page(tmp_path):
    curves = {("cifar10-vgg5", "hybrid"): pd.Series([20.0, 85.0], index=[1, 2])}
    assert page_of(tmp_path / "one", ALL, curves)[0] == page_of(tmp_path / "two", ALL, curves)[0]


def test_no_result_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="hybridsnn run"):
        write_table_page("title", [], {}, tmp_path / "index.html")
    assert not (tmp_path / "index.html").exists()


class Page(HTMLParser):
    """Reads a page: its text, titles, ids, and rows by (column of the paper's table, our number)."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self):
        super().__init__()
        self.open, self.text, self.title, self.heading = [], "", "", ""
        self.titles, self.ids, self.rows = [], Counter(), {}
        self.row, self.label, self.column = {}, None, ""

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids.update([found["id"]] if "id" in found else [])
        self.titles += [found["title"]] if "title" in found else []
        if tag == "tr":
            self.row, self.label, self.column = {}, None, ""
        if tag == "td" and "data-label" in found:
            self.label = found["data-label"]
            self.row[self.label] = ""
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.ids.update(value for name, value in attributes if name == "id")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "td":
            self.label = None
        if tag == "tr" and self.row:
            self.rows[self.column, self.row["ours"]] = self.row

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "title":
            self.title += data
        if self.open and self.open[-1] == "h1":
            self.heading += data
        if self.open and self.open[-1] == "th":
            self.column += data.strip()
        if self.label is not None:
            self.row[self.label] += data.strip()
