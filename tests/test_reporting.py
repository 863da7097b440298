"""Reports: known tables, figures for every mix of networks, a page that stands alone."""

import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest
from matplotlib.colors import to_hex

from hybridsnn.errors import ArtifactError
from hybridsnn.reporting import NetworkReport, Provenance, accuracy_table, as_text, write_report
from hybridsnn.reporting.figures import FIGURES
from hybridsnn.reporting.headline import headlines, steps_to_reach
from hybridsnn.reporting.lineage import lineage_svg
from hybridsnn.reporting.tables import accuracy_by_step_table, firing_rate_table, markdown, spikes_table

COLUMNS = ["stage", "split", "epoch", "step", "layer", "metric", "value"]


def long_form(rows):
    """A frame from (split, epoch, step, layer, metric, value)."""
    return pd.DataFrame([("any", *row) for row in rows], columns=COLUMNS)


def training(epochs=3):
    return long_form(
        (split, epoch, None, None, metric, value)
        for epoch in range(1, epochs + 1)
        for split in ("train", "validation")
        for metric, value in (("loss", 1 / epoch), ("accuracy", 1 - 0.5 / epoch))
    )


def ann(accuracy=0.99, label="ann", dataset="digits", split="test", history=None):
    rows = [("accuracy", accuracy), ("loss", 0.1), ("images", 360)]
    evaluation = long_form((split, None, None, None, metric, value) for metric, value in rows)
    return NetworkReport(label, "ann", "train-ann", dataset, split, evaluation, history)


def snn(accuracies=(0.5, 0.75, 0.9), label="convert-max", rates=None, dataset="digits", split="test", history=None):
    rates = {"neuron1": 0.25, "neuron2": 0.125} if rates is None else rates
    rows = [(split, None, step, None, "accuracy", value) for step, value in enumerate(accuracies, 1)]
    rows += [(split, None, step, None, "loss", 1.0) for step in range(1, len(accuracies) + 1)]
    rows += [(split, None, None, layer, "firing-rate", value) for layer, value in rates.items()]
    rows += [(split, None, None, layer, "spikes-per-image", 100.0) for layer in rates]
    rows += [
        (split, None, None, None, "spikes-per-image", 100.0 * len(rates)),
        (split, None, None, None, "images", 360),
    ]
    return NetworkReport(label, "snn", "convert", dataset, split, long_form(rows), history)


def curve(steps, final=0.9):
    return [final * (1 - math.exp(-(step + 1))) for step in range(steps)]


LONG = "an-artifact-<b>&$x^2$|-with-a-name-that-goes-on-and-on-and-on-until-it-is-far-too-long-for-any-legend"
SPIKING = {"accuracy", "firing_rates", "spikes"}
# networks, and the figures there should be of them
MIXES = {
    "everything": ([ann(history=training()), snn(), snn(label="stdb", history=training(1))], set(FIGURES)),
    "no ann": ([snn(), snn(label="other")], SPIKING),
    "only an ann": ([ann(history=training())], {"training"}),
    "only an ann, untrained": ([ann()], set()),
    "one step": ([ann(), snn([0.8])], SPIKING),
    "eight": (
        [ann()] + [snn(curve(40, 0.9 + place / 100), f"snn-{place}") for place in range(8)],
        SPIKING,
    ),
    "long names": ([ann(label=LONG, history=training()), snn(label=LONG + "-2", rates={LONG: 0.5})], set(FIGURES)),
    "no history": ([ann(), snn()], SPIKING),
    "many steps": ([ann(), snn(curve(300)), snn(curve(5), "short")], SPIKING),
    "several data": (
        [ann(), snn(), ann(split="validation"), snn(split="validation"), snn(dataset="mnist", rates={"other": 0.1})],
        SPIKING,
    ),
    "perfect and chance": ([ann(1.0), snn([0.1, 0.1])], SPIKING),
    "silent": ([snn([0.1, 0.1], rates={"neuron1": 0.0})], SPIKING),
    "no rates": ([ann(), snn(rates={})], {"accuracy"}),
    "diverged": ([ann(history=training().assign(value=[math.nan, *[math.inf] * 3, *[1.0] * 8]))], {"training"}),
}
PROVENANCE = [
    Provenance("ann", "ann", "train-ann", "0123456789abcdef" * 4, "2025-03-01 12:00", 75.0, "cpu", 3 * 2**30,
               {"torch": "2.6.0"}, (), "epochs: 3\nnote: <script>\n"),
    Provenance("convert-max", "snn", "convert", "fedcba9876543210" * 4, "2025-03-01 12:02", 4.25, "cpu", 0,
               {"torch": "2.6.0"}, ("ann",), "balance: max\n"),
]  # fmt: skip


def test_accuracy_table_is_known():
    table = accuracy_table([ann(), snn([0.1, 0.5, 0.6, 0.75, 0.9])])
    assert list(table.columns) == [
        "network", "stage", "T", "accuracy (%)", "vs ANN (points)", "T=1 (%)", "T=2 (%)", "T=4 (%)", "spikes / image",
    ]  # fmt: skip
    assert as_text(table).to_numpy().tolist() == [
        ["ann", "train-ann", "–", "99.00", "–", "–", "–", "–", "–"],
        ["convert-max", "convert", "5", "90.00", "−9.00", "10.00", "50.00", "75.00", "200"],
    ]


def test_accuracy_at_missing_steps_is_empty():
    table = accuracy_table([snn([0.5], "short"), snn([0.5, 0.6, 0.7], "long")])
    assert table["T=1 (%)"].tolist() == [50.0, 50.0]
    assert table["T=2 (%)"].isna().tolist() == [True, False]
    assert table["T"].tolist() == [1, 3]


def test_difference_needs_one_ann_on_the_same_data():
    def differences(*networks):
        table = accuracy_table(networks)
        return table["vs ANN (points)"].fillna(math.inf).tolist() if "vs ANN (points)" in table else None

    assert differences(ann(0.95), snn([0.9]), ann(0.8, split="validation"), snn([0.9], split="validation")) == [
        math.inf, -5.0, math.inf, 10.0,
    ]  # fmt: skip
    assert differences(ann(0.95), snn([0.9], dataset="mnist")) is None
    assert differences(ann(0.95), ann(0.94, label="other"), snn([0.9])) is None


def test_data_are_named_only_where_they_differ():
    assert "data" not in accuracy_table([ann(), snn()])
    assert accuracy_table([ann(), snn(split="validation")])["data"].tolist() == ["digits, test", "digits, validation"]


def leaving_early(network, accuracy=0.88, mean_steps=1.25):
    rows = [
        ("test", None, None, None, "exit-accuracy", accuracy),
        ("test", None, None, None, "exit-mean-steps", mean_steps),
    ]
    return replace(network, evaluation=pd.concat([network.evaluation, long_form(rows)], ignore_index=True))


def test_leaving_early_is_shown_where_measured(tmp_path):
    whole, early = snn(), leaving_early(snn(label="early"))
    assert not {"early exit (%)", "mean steps"}.intersection(accuracy_table([ann(), whole]))
    shown = as_text(accuracy_table([ann(), whole, early]))
    assert shown["early exit (%)"].tolist() == ["–", "–", "88.00"]
    assert shown["mean steps"].tolist() == ["–", "–", "1.2"]
    star = FIGURES["accuracy"].draw([ann(), whole, early]).axes[0].lines[-1]
    assert (star.get_xdata().item(), star.get_ydata().item()) == (1.25, 88.0)
    assert star.get_color() == FIGURES["accuracy"].draw([ann(), whole, early]).axes[0].lines[-2].get_color()
    for networks, told in (([whole], False), ([whole, early], True)):
        write_report("title", networks, PROVENANCE, tmp_path)
        assert ("With early exit" in (tmp_path / "index.html").read_text(encoding="utf-8")) == told


def with_rows(network, metric, values):
    """The network with a metric at some steps; label and other measurements as they are."""
    rows = long_form(("test", None, step, None, metric, value) for step, value in values.items())
    return replace(network, evaluation=pd.concat([network.evaluation, rows], ignore_index=True))


@pytest.mark.parametrize("steps", [(3,), (1, 2, 3)])
def test_the_ceiling_is_shown_where_measured(steps):
    limited = with_rows(snn(), "ceiling", {step: 0.96 + 0.01 * step for step in steps})
    assert as_text(accuracy_table([ann(0.97), limited]))["ceiling (%)"].tolist() == ["–", "99.00"]
    assert "ceiling (%)" not in accuracy_table([ann(), snn()])
    axes = FIGURES["accuracy"].draw([ann(0.97), limited, snn(label="other")]).axes[0]
    curve, ceiling = axes.lines[1], axes.lines[2]
    assert ceiling.get_xdata().tolist() == list(steps) and ceiling.get_color() == curve.get_color()
    assert ceiling.get_ydata()[-1] == pytest.approx(99) and axes.get_ylim()[1] > 99
    assert len(axes.lines) == 4


def test_a_layer_synchronous_run_competes_with_none():
    rows = [(3, "layer-synchronous-accuracy", 0.98), (None, "latency", 6), (None, "images", 360)]
    evaluation = long_form(("test", None, step, None, metric, value) for step, metric, value in rows)
    waiting = NetworkReport("waiting", "snn", "convert", "digits", "test", evaluation, None)
    (headline,) = headlines([ann(), snn(), waiting])
    assert "convert-max, classifies 90.00 %" in headline.sentence
    card = headline.glances[2]
    assert card.accuracy == "98.00 %" and not card.best
    assert card.details[1:3] == ("layer-synchronous, T = 3", "latency of 6 time steps")
    (alone,) = headlines([waiting])
    assert "waiting, classifies 98.00 % of 360 images correctly in 6 time steps" in alone.sentence
    figure = FIGURES["accuracy"].draw
    assert len(figure([ann(), snn(), waiting]).axes[0].lines) == 2 and figure([ann(), waiting]) is None


def test_every_step_is_kept():
    table = accuracy_by_step_table([ann(), snn([0.5, 0.123456])])
    assert table["T"].tolist() == [1, 2]
    assert table["accuracy (%)"].tolist() == [50.0, 12.3456]


def test_firing_rates_keep_the_order_of_layers_and_leave_gaps():
    table = firing_rate_table([ann(), snn(label="a", rates={"z": 0.5, "b": 0.25}), snn(label="c", rates={"b": 1.0})])
    assert table["layer"].tolist() == ["z", "b"]
    assert table["a"].tolist() == [0.5, 0.25]
    assert table["c"].fillna(-1).tolist() == [-1, 1.0]


def test_frames_read_back_from_a_file_give_the_same_tables(tmp_path):
    network = snn()
    network.evaluation.to_csv(tmp_path / "metrics.csv", index=False)
    for empty_as_text in (True, False):
        frame = pd.read_csv(tmp_path / "metrics.csv", keep_default_na=not empty_as_text)
        read = NetworkReport(network.label, "snn", "convert", "digits", "test", frame, None)
        pd.testing.assert_frame_equal(accuracy_table([read]), accuracy_table([network]))
        pd.testing.assert_frame_equal(firing_rate_table([read]), firing_rate_table([network]))


def test_markdown_is_known():
    table = pd.DataFrame({"network": ["a|<b>", "c"], "accuracy (%)": [1.0, math.nan]})
    assert markdown(table) == "| network | accuracy (%) |\n| :--- | ---: |\n| a\\|&lt;b> | 1.00 |\n| c | – |\n"


@pytest.mark.parametrize("mix", MIXES)
def test_report_has_the_figures_and_stands_alone(mix, tmp_path):
    networks, figures = MIXES[mix]
    write_report("A <title>", networks, PROVENANCE, tmp_path)
    assert {path.stem for path in tmp_path.glob("*.png")} == figures
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    reader = Page()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert reader.repeated_ids() == []
    for network in networks:
        assert network.label in reader.text
    for artifact in PROVENANCE:
        assert artifact.name in reader.text
        assert artifact.config in reader.text
        assert artifact.digest[:12] in reader.text
    assert "A <title>" in reader.text
    assert "://" not in page and "<script" not in page and "<b>" not in page
    assert not re.findall(r'(?:src|href)="(?!#)|url\((?!#)', page)
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == len(figures) + 1  # the lineage
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(reader.ids)


def test_accuracy_axis_shows_where_networks_end():
    draw = FIGURES["accuracy"].draw
    close = draw([ann(0.99), snn([0.1, 0.5, 0.97, 0.985])]).axes[0].get_ylim()
    assert 70 < close[0] < 97 and 99 < close[1] < 102
    apart = draw([ann(0.99), snn([0.1, 0.2])]).axes[0].get_ylim()
    assert apart[0] < 10


def test_legend_names_every_network_with_its_accuracy():
    figure = FIGURES["accuracy"].draw([snn([0.5, 0.875]), ann(0.9875)])
    texts = [text.get_text().split("\u2002") for text in figure.axes[0].get_legend().get_texts()]
    assert texts == [["98.75 %", "ann"], ["87.50 %", "convert-max"]]


def test_a_network_keeps_its_colour_in_every_figure():
    networks = [ann(), snn(label="a"), snn(label="b", rates={"other": 0.5})]
    curves = [line.get_color() for line in FIGURES["accuracy"].draw(networks).axes[0].lines[1:]]
    rates = FIGURES["firing_rates"].draw(networks).axes
    assert curves == [to_hex(axes.patches[0].get_facecolor()) for axes in rates]
    assert len(set(curves)) == 2


def test_two_runs_write_the_same_files(tmp_path):
    networks, _ = MIXES["everything"]
    for run in ("one", "two"):
        write_report("Report", networks, PROVENANCE, tmp_path / run)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [
        "accuracy.csv", "accuracy.md", "accuracy.png", "accuracy_by_step.csv", "firing_rates.csv", "firing_rates.md",
        "firing_rates.png", "index.html", "spikes.csv", "spikes.md", "spikes.png", "training.png",
    ]  # fmt: skip
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="hybridsnn evaluate"):
        write_report("Report", [], [], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_epoch_that_was_kept_is_marked_where_known():
    history = pd.concat([training(3), long_form([("validation", 2, None, None, "kept-epoch", 2.0)])])

    def upright(network):
        lines = [line for axes in FIGURES["training"].draw([network]).axes for line in axes.lines]
        return [line.get_xdata()[0] for line in lines if line.get_linestyle() == ":"]

    assert upright(ann(history=history)) == [2, 2]
    assert upright(ann(history=training(3))) == []


def test_spikes_of_each_layer_are_kept():
    table = spikes_table([ann(), snn(label="a", rates={"z": 0.5, "b": 0.25}), snn(label="c", rates={"b": 1.0})])
    assert table["layer"].tolist() == ["z", "b"]
    assert table.fillna(-1)["c"].tolist() == [-1, 100.0]


def test_headline_is_known():
    (headline,) = headlines([ann(), snn([0.5, 0.985, 0.98]), snn([0.6, 0.7, 0.8], "other")])
    assert headline.data == "digits, test"
    assert headline.sentence == (
        "The best spiking network, convert-max, classifies 98.00 % of 360 images correctly in 3 time steps with 200 "
        "spikes for each: 1.00 points below the ANN (99.00 %). With so many images, one is 0.28 points, and the "
        "standard error of this accuracy is 0.74 points."
    )
    assert [(glance.name, glance.accuracy, glance.best) for glance in headline.glances] == [
        ("ann", "99.00 %", False), ("convert-max", "98.00 %", True), ("other", "80.00 %", False),
    ]  # fmt: skip
    assert headline.glances[1].details == (
        "convert", "T = 3", "−1.00 points to the ANN", "within 1 point from T = 2 on", "200 spikes per image",
    )  # fmt: skip
    assert headline.glances[2].details == ("convert", "T = 3", "−19.00 points to the ANN", "200 spikes per image")


def test_headline_and_table_round_alike():
    network = snn()
    whole = (network.evaluation["metric"] == "spikes-per-image") & network.evaluation["layer"].isna()
    network.evaluation.loc[whole, "value"] = 5171.46
    (headline,) = headlines([network])
    (shown,) = as_text(accuracy_table([network]))["spikes / image"]
    assert f"{shown} spikes per image" in headline.glances[0].details and f" {shown} spikes " in headline.sentence


def test_headline_without_spikes_or_ann():
    (alone,) = headlines([ann()])
    assert alone.sentence.startswith("The best network, ann, classifies 99.00 % of 360 images correctly. ")
    (one_step,) = headlines([snn([0.9])])
    assert "convert-max, classifies 90.00 % of 360 images correctly in 1 time step with " in one_step.sentence
    assert "ANN" not in one_step.sentence


def test_best_of_equals_needs_fewer_steps_then_fewer_spikes():
    fewer = snn([0.5, 0.75, 0.9], "fewer", rates={"neuron1": 0.25})
    for networks, best in (([snn(), snn([0.9], "short")], "short"), ([snn(), fewer], "fewer")):
        (headline,) = headlines(networks)
        assert [glance.name for glance in headline.glances if glance.best] == [best]


@pytest.mark.parametrize(
    ("accuracies", "wanted", "step"),
    [([0.5, 0.9, 0.9], 90, 2), ([0.9, 0.5, 0.9], 90, 3), ([0.9, 0.9], 80, 1), ([0.9, 0.5], 90, None)],
)
def test_steps_to_reach_an_accuracy_and_stay(accuracies, wanted, step):
    assert steps_to_reach(snn(accuracies), wanted) == step


def test_lineage_puts_children_below_and_right_of_what_they_were_made_from():
    def made(name, kind, *parents):
        return replace(PROVENANCE[0], name=name, kind=kind, parents=parents)

    artifacts = [
        made("ann", "ann"), made("converted", "snn", "ann"), made("tuned", "snn", "converted"),
        made("other", "ann"), made("ann-test", "evaluation", "ann"), made("tuned-test", "evaluation", "tuned"),
    ]  # fmt: skip
    drawing = ElementTree.fromstring(lineage_svg(artifacts, [f"to-{artifact.name}" for artifact in artifacts]))
    drawn = {link.get("href").removeprefix("#to-"): link[0].get("transform") for link in drawing.iter("a")}
    assert list(drawn) == ["ann", "ann-test", "converted", "tuned", "tuned-test", "other"]
    places = {name: tuple(map(int, re.findall(r"\d+", transform))) for name, transform in drawn.items()}
    tops = [top for _, top in places.values()]
    assert tops == sorted(set(tops))
    for artifact in artifacts:
        for parent in artifact.parents:
            assert places[parent][0] < places[artifact.name][0]
    assert places["other"][0] == places["ann"][0]
    assert len(list(drawing.iter("path"))) == 4


def test_lineage_joins_an_artifact_to_all_it_was_made_from():
    first, second = (replace(PROVENANCE[0], name=name) for name in ("one", "two"))
    both = replace(PROVENANCE[1], name="both", parents=("one", "two", "elsewhere"))
    drawing = ElementTree.fromstring(lineage_svg([first, second, both], ["a", "b", "c"]))
    assert len(list(drawing.iter("path"))) == 2
    assert [link.get("href") for link in drawing.iter("a")] == ["#a", "#b", "#c"]


def test_settings_that_were_chosen_come_before_all(tmp_path):
    artifact = replace(PROVENANCE[0], chosen={"learning_rate": "<0.5>"}, config="epochs: 3\n")
    write_report("title", [ann()], [artifact], tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.index("<dt>learning_rate</dt><dd>&lt;0.5&gt;</dd>") < page.index("epochs: 3")


def test_versions_are_told_once_where_they_agree(tmp_path):
    other = replace(PROVENANCE[1], versions={"torch": "2.7.0"})
    for artifacts, times in ((PROVENANCE, [1, 0]), ([PROVENANCE[0], other], [1, 1])):
        write_report("title", [ann()], artifacts, tmp_path)
        page = (tmp_path / "index.html").read_text(encoding="utf-8")
        assert [page.count(f"torch {version}") for version in ("2.6.0", "2.7.0")] == times


class Page(HTMLParser):
    """Reads a page; an element closed out of turn fails, one left open stays in `open`."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self):
        super().__init__()
        self.open, self.text, self.ids = [], "", Counter()

    def handle_starttag(self, tag, attributes):
        self.ids.update(value for name, value in attributes if name == "id")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.ids.update(value for name, value in attributes if name == "id")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def repeated_ids(self):
        return [name for name, count in self.ids.items() if count > 1]
