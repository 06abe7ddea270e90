"""Noise and cost as people see them: a made-up document in a terminal, as CSV and on the page."""

import csv
import functools
import io
import json
import math
import random
import re
from html import unescape
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llm_mdp.report.plots import COLOUR, NAME, new_axes, short, spread, tick, to_svg
from llm_mdp.report.rows import SYMBOLS
from llm_mdp.report.variance_page import COLUMNS, render_variance_page
from llm_mdp.report.variance_rows import (
    FIGURES,
    INTERVALS,
    along_axis,
    budgets,
    by_progress,
    figure,
    leaders,
    margin,
    prominent,
    tokens_to_signal,
    worth_showing,
    write_csv,
)
from llm_mdp.report.variance_terminal import HEADS, print_variance
from tests.report.pages import HOSTILE, Page, in_chromium, opened

ESTIMATORS = {
    "reinforce": [{}],
    "remax": [{}],
    "rloo": [{"group_size": k} for k in (2, 4, 8, 16)],
    "grpo": [{"group_size": k} for k in (2, 4, 8, 16)],
    "dr-grpo": [{"group_size": k} for k in (4, 8)],
    "trepo": [{"boundary": d, "samples": m} for d in (1, 2) for m in (1, 4)],
    "trepo-paper": [{"boundary": 2, "samples": m} for m in (1, 4)],
    "vineppo": [{"boundary": 2, "samples": m} for m in (1, 4, 8)],
    "gae-wrong": [{"lam": lam} for lam in (0.0, 0.95, 1.0)],
    "kl-k1-loss": [{}],
}
SHORT = {"group_size": "K", "boundary": "D", "samples": "M", "lam": "λ"}


def made_up_row(rng: random.Random, estimator: str, options: dict, horizon: int, budget: float, sampled: bool) -> dict:
    """A row whose figures are those of one estimator: cost and noise grow with the horizon, figures agree with each
    other."""
    k, m, d = options.get("group_size", 1), options.get("samples", 0), options.get("boundary", 1)
    branches = m * horizon / d if m else 0
    tokens = 0.7 * horizon * (k + 0.5 * branches + (estimator == "remax")) * rng.uniform(0.97, 1.03)
    noise = {"reinforce": 2.5, "remax": 1.1}.get(estimator, 1.0) * (1 + (k > 1) / max(1, k - 1)) / k * 0.2 * horizon
    if m:
        noise *= (1.2 + 1.5 / m) / horizon**1.1 * (0.4 if estimator == "trepo-paper" else 1)
    if estimator == "gae-wrong":
        noise *= 0.1 + 1.9 * options["lam"] ** 6
    bias = {"grpo": 0.3 / math.sqrt(k), "trepo-paper": 0.35 + 0.1 / (1 + m)}.get(estimator, 0.0)
    if estimator == "gae-wrong":
        bias = 0.8 * (1 - options["lam"]) ** 0.5
    gradient = 0.6
    scale = 0.875 if estimator == "dr-grpo" else 1 - bias / 2
    across = math.sqrt(max(bias**2 - (1 - scale) ** 2, 0)) if estimator != "dr-grpo" else 0.0
    cosine = scale / math.hypot(scale, across)
    trace = noise * gradient**2 * scale**2
    if estimator == "kl-k1-loss":
        scale, cosine, across, bias = 0.0, None, 0.0, 1.0
    bias = abs(1 - scale) if estimator == "dr-grpo" else bias
    signal = gradient**2 * (scale**2 + across**2)
    q = trace * tokens / signal if signal else None
    gained = None if q is None else cosine * abs(cosine) / (1 + q / budget)
    verdict = "proportional" if estimator == "dr-grpo" else "unbiased" if bias == 0 else "biased"
    words = " ".join(f"{SHORT[name]}={value}" for name, value in options.items())
    spans = {
        "trace_covariance": [trace * 0.97, trace * 1.04],
        "relative_bias": [max(0, bias - 0.02), bias + 0.03],
        "scale": [scale - 0.02, scale + 0.02],
        "cosine": None if cosine is None else [cosine - 0.02, min(1, cosine + 0.01)],
        "tokens_to_signal": [None, None] if q is None else [q * 0.9, q * 1.15],
        "tokens_over_base": None if q is None else [q / 41, q / 39],
        "progress": None if gained is None else [gained - 0.02, gained + 0.015],
    }
    return {
        "label": f"{estimator} {words}".strip(),
        "estimator": estimator,
        "options": options,
        "verdict": verdict,
        "tokens": tokens,
        "rewards": k + branches,
        "seconds": rng.uniform(0.2, 2) if sampled else None,
        "trace_covariance": trace,
        "trace_covariance_of_draws": trace * 0.4 if m else None,
        "relative_bias": bias,
        "scale": scale,
        "cosine": cosine,
        "ceiling": None if cosine is None else cosine * abs(cosine),
        "tokens_to_signal": q,
        "tokens_over_base": None if q is None else q / 40,
        "estimates": budget / tokens,
        "mean_squared_error": bias**2 + trace * tokens / budget / gradient**2,
        "signal_to_noise": 0.0 if q is None else budget / q,
        "progress": gained,
        "intervals": spans if sampled else None,
        "samples": 32000 if sampled else None,
        "by_theorem": ["relative_bias", "scale", "cosine"] if sampled and verdict == "unbiased" else [],
        "too_few": None,
        "behind": None,
        "frontier": False,
    }


def made_up_setting(seed: int, name: str, words: str, axes: dict, budget: float = 2000, sampled: bool = False) -> dict:
    rng = random.Random(seed)
    rows = [
        made_up_row(rng, estimator, options, axes["horizon"], budget, sampled)
        for estimator, choices in ESTIMATORS.items()
        for options in choices
    ]
    known = [row for row in rows if row["progress"] is not None]

    def best_at(tokens: float) -> str:
        return max(known, key=lambda row: row["cosine"] ** 2 / (1 + row["tokens_to_signal"] / tokens))["label"]

    best: list[dict] = []
    for tokens in (10 ** (k / 50) for k in range(351)):
        label = best_at(tokens)
        if not best or best[-1]["label"] != label:
            if best:
                best[-1]["to"] = tokens
            best.append({"label": label, "from": tokens, "to": None})
    for row in rows:
        row["frontier"] = row["label"] in {each["label"] for each in best}
    take = best_at(budget)
    gained = next(row["progress"] for row in rows if row["label"] == take)
    return {
        "name": name,
        "words": words,
        "axes": axes,
        "target": "reinforce" if sampled else "exact",
        "base": "reinforce" if sampled else "rloo K=8",
        "J": rng.uniform(0.1, 0.9),
        "grad_norm": 0.6,
        "expected_length": 0.7 * axes["horizon"],
        "budget": budget,
        "rows": rows,
        "best": best,
        "recommendation": f"With {budget:,.0f} tokens take {take}: {gained:.0%} of what the exact gradient would give.",
    }


def axes_of(horizon: int, rewards: str = "dense", policy: str = "tabular") -> dict:
    return {"policy": policy, "vocab_size": 4, "horizon": horizon, "rewards": rewards, "success": None, "entropy": 1.21}


def document_of(settings: list[dict], sweep: str | None) -> dict:
    return {
        "command": "llm-mdp variance",
        "version": "0.1.0",
        "seed": 0,
        "budget": 2000,
        "sweep": sweep,
        "settings": settings,
    }


def three_settings() -> dict:
    return document_of(
        [
            made_up_setting(
                1, "every token counts", "a random reward for every token; 4 tokens, horizon 5, table", axes_of(5)
            ),
            made_up_setting(
                2,
                "one bit at the end",
                "the response is right or wrong; horizon 8, n-gram",
                axes_of(8, "sparse", "ngram"),
            ),
            made_up_setting(
                3,
                "long responses",
                "lexical reward; horizon 64, transformer",
                axes_of(64, "lexical", "gpt"),
                2000,
                True,
            ),
        ],
        None,
    )


def horizon_sweep() -> dict:
    settings = [
        made_up_setting(k, f"horizon {t}", f"a random reward for every token; horizon {t}", axes_of(t), 2000, t > 20)
        for k, t in enumerate((4, 8, 16, 32, 64))
    ]
    return document_of(settings, "horizon")


def rewards_sweep() -> dict:
    kinds = ("dense", "sparse", "lexical")
    settings = [
        made_up_setting(k, kind, f"{kind} rewards; horizon 8", axes_of(8, kind)) for k, kind in enumerate(kinds)
    ]
    return document_of(settings, "rewards")


def hostile_document() -> dict:
    """Words of somebody else in every field that holds words."""
    document = three_settings()
    document.update(command=HOSTILE, version=HOSTILE)
    setting = document["settings"][0]
    setting.update(
        name=HOSTILE, words=HOSTILE, recommendation=HOSTILE, target=HOSTILE, axes={"policy": HOSTILE, HOSTILE: HOSTILE}
    )
    setting["rows"][0].update(label=HOSTILE, estimator=HOSTILE, options={HOSTILE: HOSTILE}, frontier=True)
    setting["rows"][1].update(label=f"{HOSTILE} 2", estimator=f"{HOSTILE} 2", options={"layers": [1, 2]})
    setting["best"][0]["label"] = HOSTILE
    return document


def unknown_document() -> dict:
    """Nothing is known but the names."""
    document = three_settings() | {"sweep": "horizon"}
    for setting in document["settings"]:
        setting.update(J=None, grad_norm=None, expected_length=None, best=[], recommendation="")
        for row in setting["rows"]:
            row.update(dict.fromkeys(FIGURES), tokens=10.0, rewards=1.0, verdict="undecided", frontier=False)
            row["intervals"] = {key: [None, None] for key in INTERVALS}
    return document


DOCUMENTS = {
    "three": three_settings(),
    "numbers": horizon_sweep(),
    "words": rewards_sweep(),
    "one": document_of(three_settings()["settings"][2:], None),
    "hostile": hostile_document(),
    "unknown": unknown_document(),
}


def printed(document: dict, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_variance(document, console)
    return console.export_text()


# Reading the document


gained = st.none() | st.floats(-1, 1)
any_row = st.fixed_dictionaries({"estimator": st.sampled_from("abcdef"), "progress": gained, "frontier": st.booleans()})
row_lists = st.lists(any_row, min_size=1, max_size=30)


@given(row_lists, st.integers(1, 15))
def test_no_frontier_row_and_no_leader_is_left_out(rows, most):
    shown = worth_showing(rows, most)
    for row in rows:
        if row["frontier"]:
            assert any(row is each for each in shown)
    for name in {row["estimator"] for row in rows}:
        known = [row["progress"] for row in rows if row["estimator"] == name and row["progress"] is not None]
        there = [row["progress"] for row in shown if row["estimator"] == name]
        assert there and (not known or max(known) in there)
    gained = [row["progress"] for row in shown if row["progress"] is not None]
    assert gained == sorted(gained, reverse=True) and [row["progress"] for row in shown][: len(gained)] == gained
    if len(shown) > most:
        kept = {id(row) for row in rows if row["frontier"]} | {id(row) for row in leaders(rows)}
        assert {id(row) for row in shown} == kept
    else:
        assert len(shown) == min(most, len(rows))


def test_the_best_option_of_an_estimator_is_followed_along_the_axis():
    document = horizon_sweep()
    shuffled = document | {"settings": [document["settings"][k] for k in (3, 0, 4, 2, 1)]}
    lines = along_axis(shuffled)
    assert set(lines) == set(ESTIMATORS)
    for name, points in lines.items():
        assert [point.at for point in points] == [4, 8, 16, 32, 64]
        for point, setting in zip(points, document["settings"]):
            gained = [row["progress"] for row in setting["rows"] if row["estimator"] == name]
            assert point.row["estimator"] == name and point.row["progress"] == max(
                gained, key=lambda value: -9 if value is None else value
            )


@pytest.mark.slow
def test_a_setting_without_a_value_on_the_axis_is_left_out():
    document = horizon_sweep()
    document["settings"][1]["axes"]["horizon"] = None
    assert [point.at for point in along_axis(document)["rloo"]] == [4, 16, 32, 64]
    document["settings"] = document["settings"][:3]
    assert len(re.findall("<svg", render_variance_page(document))) == 2 * (4 + 2 * 3)


def test_prominent_estimators_come_first():
    document = three_settings()
    for setting in document["settings"]:
        setting["best"] = [{"label": "reinforce", "from": 1.0, "to": None}]
    assert prominent(document)[0] == "reinforce" and prominent(document)[-1] == "kl-k1-loss"


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (14.6, [13.4, 15.4], "±1.2"),
        (14.6, [14.5, 16.0], "14.5…16.0"),
        (393.0, [150.0, 2281.0], "150…2281"),
        (0.5, [0.47, 0.5123], "±0.030"),
        (512.0, [440.0, 612.4], "±100"),
        (1e-5, [8e-6, 1.1e-5], "±2.0e-6"),
        (0.95, [0.9, None], "≥0.900"),
        (0.95, [None, 0.99], "≤0.990"),
        (1.0, [1.1, 1.2], "1.10…1.20"),
        (1.0, [None, None], ""),
        (None, [0.0, 1.0], ""),
        (1.0, None, ""),
    ],
)
def test_margins(value, interval, text):
    key = "tokens_to_signal"
    assert margin({key: value, "intervals": {key: interval}}, key) == text
    assert margin({key: value, "intervals": None}, key) == ""


def test_noise_without_signal_takes_infinitely_many_tokens():
    assert tokens_to_signal({"tokens_to_signal": None, "trace_covariance": 0.2}) == "∞"
    assert tokens_to_signal({"tokens_to_signal": None, "trace_covariance": None}) == "–"
    assert tokens_to_signal({"tokens_to_signal": 12345.6, "trace_covariance": 0.2}) == "12346"


@pytest.mark.parametrize(
    ("start", "end", "text"),
    [
        (12.0, 2340.4, "12.0 to 2,340 tokens"),
        (340.0, None, "from 340 tokens"),
        (None, 100.0, "up to 100 tokens"),
        (None, None, "every budget"),
    ],
)
def test_budgets(start, end, text):
    assert budgets({"from": start, "to": end}) == text


@pytest.mark.parametrize("document", [{}, {"settings": []}, {"settings": [{"name": "x", "rows": []}]}, {"claims": {}}])
def test_what_is_no_comparison_is_refused_in_words(document, tmp_path):
    for read in (
        render_variance_page,
        lambda document: printed(document, 80),
        lambda document: write_csv(document, tmp_path / "x.csv"),
    ):
        with pytest.raises(ValueError, match="llm-mdp variance --out FOLDER"):
            read(document)
    assert not (tmp_path / "x.csv").exists()


# CSV


@pytest.mark.parametrize("name", DOCUMENTS)
def test_csv_holds_every_number(name, tmp_path):
    document = DOCUMENTS[name]
    write_csv(document, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    expected = [(setting, row) for setting in document["settings"] for row in setting["rows"]]
    assert len(lines) == len(expected)

    def same(text: str, value) -> bool:
        if isinstance(value, float) and not isinstance(value, bool):
            return float(text) == value
        return text == ("" if value is None else json.dumps(value) if isinstance(value, list) else str(value))

    for line, (setting, row) in zip(lines, expected):
        assert None not in line, "more cells than columns"
        assert line["setting"] == setting["name"] and all(
            same(line[key], setting[key]) for key in ("J", "grad_norm", "target", "budget")
        )
        assert all(same(line[f"axis_{axis}"], value) for axis, value in setting["axes"].items())
        assert all(same(line[f"option_{option}"], value) for option, value in row["options"].items())
        scalars = set(row) - {"options", "intervals", "by_theorem", "too_few", "behind"}
        assert all(same(line[key], row[key]) for key in scalars)
        for key in INTERVALS:
            ends = (row["intervals"] or {}).get(key) or [None, None]
            assert same(line[f"{key}_low"], ends[0]) and same(line[f"{key}_high"], ends[1])


# Figures in words


SAMPLED_ROW = {"verdict": "undecided", "tokens": 5.0, "rewards": 2.0, "samples": 300}


@pytest.mark.parametrize(
    ("key", "ends", "text"),
    [
        ("cosine", [-1.0, 1.0], "?"),
        ("cosine", [0.3, 1.0], "≥0.300"),
        ("cosine", [0.3, 0.4], "0.300…0.400"),
        ("cosine", [-1.0, 0.2], "≤0.200"),
        ("relative_bias", [0.0, 0.35], "≤0.350"),
        ("relative_bias", [0.0, None], "?"),
        ("tokens_to_signal", [120.0, None], "≥120"),
    ],
)
def test_where_draws_left_no_number_the_interval_stands_alone(key, ends, text):
    row = SAMPLED_ROW | {key: None, "trace_covariance": 1.0, "intervals": {key: ends}}
    assert figure(row, key) == text and margin(row, key) == ""


def test_a_theorem_is_no_measurement():
    row = SAMPLED_ROW | {"relative_bias": 0.0, "cosine": 1.0, "by_theorem": ["relative_bias", "cosine"]}
    row["intervals"] = {"trace_covariance": [1.0, 2.0]}
    assert figure(row, "relative_bias") == figure(row, "cosine") == "by theorem"
    exact = row | {"by_theorem": [], "intervals": None}
    assert (figure(exact, "relative_bias"), figure(exact, "cosine")) == ("<1e-9", "1")


# Terminal


def columns_of(setting: dict) -> list[str]:
    """What a row may show, from left to right."""
    names = ["tokens", "tokens_over_base", "trace_covariance", "relative_bias", "cosine", "tokens_to_signal"]
    names += ["progress", "scale", "mean_squared_error", "signal_to_noise", "rewards"]
    shown = worth_showing(setting["rows"])
    return [name for name in names if any(figure(row, name) not in ("", "–") for row in shown)]


def told(row: dict, columns: list[str]) -> list[str]:
    """The figures of a row and their intervals, word by word."""
    cells = [(figure(row, key), "" if key in ("tokens", "rewards") else margin(row, key)) for key in columns]
    return sorted(word for cell in cells for part in cell for word in part.replace("…", "… ").split())


@pytest.mark.parametrize("width", [60, 80, 100, 120, 150, 200])
@pytest.mark.parametrize("name", ["three", "numbers", "words", "one", "unknown"])
def test_no_figure_is_cut_and_no_line_is_too_long(name, width):
    """Every figure of a row stands whole in its lines, but for columns that the notes say there was no room for."""
    document = DOCUMENTS[name]
    text = printed(document, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    for setting in document["settings"]:
        start = next(place for place, line in enumerate(lines) if line.startswith(f"{setting['name']}   "))
        end = next(
            place for place, line in enumerate(lines[start:], start) if line.startswith(("★ on", "± 95", "base"))
        )
        notes = " ".join(" ".join(lines[end : lines.index("", end)]).split())
        hidden = re.findall(r"no room for (.*?): see the page", notes)
        names = [name.strip() for name in hidden[0].split(",")] if hidden else []
        columns = [key for key in columns_of(setting) if HEADS[key] not in names]
        assert width < 100 or not names or len(columns) >= 8
        assert {"tokens_to_signal", "progress"} & set(columns) == {"tokens_to_signal", "progress"} & set(
            columns_of(setting)
        )
        for row in worth_showing(setting["rows"]):
            beside = [SYMBOLS[row["verdict"]], row["verdict"], "★", *row["label"].split()]
            words = lines_of(row, lines[start:end])
            left = [word for word in words if word not in beside]
            assert left == [word for word in told(row, columns) if word not in beside]
        if setting["recommendation"]:
            assert setting["recommendation"] in " ".join(text.split())


def lines_of(row: dict, lines: list[str]) -> list[str]:
    """The words of a row, sorted: from the line that begins with its name to the next that has a verdict."""
    symbols = set(SYMBOLS.values())
    begins = [place for place, line in enumerate(lines) if symbols & set(line.split()) and len(line.split()) > 2]
    for place, after in zip(begins, [*begins[1:], len(lines)]):
        words = [word for line in lines[place:after] for word in line.split()]
        label = [word for word in words if word in row["label"].split()]
        if label[: len(row["label"].split())] == row["label"].split() and words[0] in ("★", row["label"].split()[0]):
            return sorted(words)
    raise AssertionError(f"{row['label']} is not there")


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_too_few_successes_stand_in_place_of_figures(width, tmp_path):
    document = document_of(three_settings()["settings"][2:], None)
    row = next(row for row in document["settings"][0]["rows"] if row["estimator"] == "grpo")
    words = "too few successes: 3 of 300 estimates have a gradient; about 3,000 are needed"
    figures = dict.fromkeys([*FIGURES, "tokens_over_base"])
    row.update(figures, tokens=10.0, rewards=2.0, intervals=None, too_few={"words": words}, frontier=True)
    assert words in " ".join(printed(document, width).split())
    if width == 80:
        assert words in unescape(render_variance_page(document))
        write_csv(document, tmp_path / "rows.csv")
        assert (tmp_path / "rows.csv").read_text(encoding="utf-8").count(f'"{words}"') == 1


def test_more_rows_than_a_terminal_shows_are_counted():
    text = printed(three_settings(), 80)
    left = [int(count) for count in re.findall(r"… (\d+) more, see the page", text)]
    assert left == [
        len(setting["rows"]) - len(worth_showing(setting["rows"])) for setting in three_settings()["settings"]
    ]
    few = three_settings()
    for setting in few["settings"]:
        setting["rows"] = setting["rows"][:5]
    assert "more, see the page" not in printed(few, 80)


def test_what_is_best_for_which_budgets():
    document = document_of(three_settings()["settings"][:1], None)
    first, then = (
        {"label": "rloo K=2", "from": 12.0, "to": 340.0},
        {"label": "trepo D=2 M=1", "from": 340.0, "to": None},
    )
    document["settings"][0]["best"] = [first, then]
    text = printed(document, 80)
    assert re.search(r"12.0 to 340 tokens +rloo K=2\b", text) and re.search(r"from 340 tokens +trepo D=2 M=1\b", text)


def test_terminal_takes_words_literally():
    assert " ".join(printed(hostile_document(), 200).split()).count("[red]markup[/red]") >= 5


# Drawings


places = st.lists(st.floats(-5, 5), min_size=1, max_size=8)


@given(places, st.floats(0, 1), st.data())
def test_names_are_spread_as_little_as_can_be(wanted, gap, data):
    placed = spread(np.array(wanted), gap, -1e6, 1e6)
    order = np.argsort(wanted, kind="stable")
    assert np.all(np.diff(placed[order]) >= gap - 1e-9)
    steps = data.draw(st.lists(st.floats(0, 2), min_size=len(wanted), max_size=len(wanted)))
    other = np.cumsum(steps) + gap * np.arange(len(wanted)) + data.draw(st.floats(-8, 3))
    assert np.sum((placed - wanted) ** 2) <= np.sum((other - np.array(wanted)[order]) ** 2) + 1e-9


@given(places, st.floats(0.01, 0.1))
def test_spread_names_stay_inside(wanted, gap):
    placed = spread(np.array(wanted), gap, 0.0, 1.0)
    assert placed.min() >= -1e-9 and placed.max() <= 1 + 1e-9
    assert np.all(np.diff(np.sort(placed)) >= gap - 1e-9)


TICKS = [
    (0.25, "0.25"),
    (12000, "12k"),
    (3.5e6, "3.5M"),
    (2e-5, "2e−5"),
    (-1.5, "−1.5"),
    (1000, "1000"),
    (4e9, "4G"),
    (0, "0"),
]


@pytest.mark.parametrize(("value", "text"), TICKS)
def test_ticks(value, text):
    assert tick(value, 0) == text


def test_a_long_name_is_one_short_line():
    assert short("a\nb  c") == "a b c" and len(short("x" * 200)) == NAME and short("x" * NAME) == "x" * NAME


def test_a_drawing_takes_names_literally_and_has_the_colours_of_the_page():
    axes = new_axes(4, 3)
    axes.text(0.5, 0.5, "$x_{$ <b>", color=COLOUR["--tone-1"], parse_math=False)
    drawing = ElementTree.fromstring(to_svg(axes, 'a "title" \\1 <b>', "x").replace("xlink:href", "href"))
    assert drawing.get("aria-label") == 'a "title" \\1 <b>'
    text = next(each for each in drawing.iter("text") if each.text == "$x_{$ <b>")
    assert "fill: var(--tone-1)" in text.get("style", "")


# Page


def drawings(text: str) -> list[ElementTree.Element]:
    """Every drawing of the page; fails if one is not well-formed."""
    return [
        ElementTree.fromstring(re.sub("xlink:href", "href", each))
        for each in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    ]


def drawing_of(text: str, label: str) -> ElementTree.Element:
    return next(drawing for drawing in drawings(text) if drawing.get("aria-label") == label)


def paths(drawing: ElementTree.Element, *style: str) -> list[np.ndarray]:
    """The points (n, 2) of every line with these styles."""
    found = [each.get("d", "") for each in drawing.iter("path") if set(style) <= set(each.get("style", "").split("; "))]
    return [np.array(re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", line), dtype=float) for line in found]


def marks(drawing: ElementTree.Element, colour: str) -> np.ndarray:
    """Where the round marks of a colour are, (n, 2)."""
    found = [each for each in drawing.iter("use") if f"fill: var({colour})" in each.get("style", "")]
    return np.array([[float(each.get("x")), float(each.get("y"))] for each in found])


@functools.cache
def page_of(name: str) -> str:
    return render_variance_page(DOCUMENTS[name])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_page_is_well_formed_and_holds_the_document(name):
    document, text = DOCUMENTS[name], page_of(name)
    page = Page(text)
    assert not page.open
    assert json.loads(page.scripts["document"]) == document
    assert [tag for tag, _ in page.tags].count("script") == 2
    along = 0 if document["sweep"] is None else 2 * (1 if document["sweep"] == "rewards" else 4)
    assert len(drawings(text)) == 4 * len(document["settings"]) + along
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    used = {attributes["xlink:href"][1:] for _, attributes in page.tags if "xlink:href" in attributes}
    assert used <= set(ids) and len(ids) == len(set(ids))
    told = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"#0a0b|\bnan\b|\bNone\b|\binf\b", told)


@pytest.mark.parametrize("name", ["three", "numbers", "words"])
def test_page_needs_no_network(name):
    page = Page(page_of(name))
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe")
        assert all(
            (value or "").startswith("#") for key, value in attributes.items() if key in ("src", "href", "xlink:href")
        )
    assert not re.search(r"@import|url\((?!#)", page_of(name))


@pytest.mark.slow
def test_page_shows_hostile_words_as_text():
    page = Page(page_of("hostile"))
    assert "img" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "".join(page.text).count(HOSTILE) >= 9
    plain = Page(page_of("three"))
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}


def test_page_refuses_infinity_and_names_its_place():
    document = three_settings()
    document["settings"][0]["rows"][3]["tokens_to_signal"] = math.inf
    with pytest.raises(ValueError, match=r"\['settings'\]\[0\]\['rows'\]\[3\]\['tokens_to_signal'\] is inf"):
        render_variance_page(document)


@pytest.mark.parametrize("name", ["three", "numbers", "unknown"])
def test_the_tables_hold_the_figures_of_the_document(name):
    text = unescape(page_of(name))
    bodies = re.findall(r"<table class=\"?ledger\b[^>]*>.*?<tbody>(.*?)</tbody>", text, flags=re.DOTALL)
    assert len(bodies) == len(DOCUMENTS[name]["settings"])
    for body, setting in zip(bodies, DOCUMENTS[name]["settings"]):
        lines = re.findall(r"<tr .*?</tr>", body, flags=re.DOTALL)
        assert len(lines) == len(setting["rows"])
        for line, row in zip(lines, by_progress(setting["rows"])):
            assert f'data-sort="{row["label"]}"' in line and f"{SYMBOLS[row['verdict']]} {row['verdict']}" in line
            for heading, key, _ in COLUMNS:
                cell = re.search(rf'data-label="{heading}" data-sort="(.*?)" title="(.*?)">(.*?)</td>', line)
                if all(figure(each, key) in ("–", "∞") for each in setting["rows"]):
                    assert cell is None
                else:
                    assert cell[1] == cell[2] == ("" if row[key] is None else repr(row[key]))
                    assert (margin(row, key) in cell[3]) and ("<small>" in cell[3]) == bool(margin(row, key))
                    assert figure(row, key) in cell[3]
            assert ("★" in line) == row["frontier"]


def test_the_curves_go_through_the_progress_at_the_budget():
    """The marks are the document's own figures; the curves are drawn from cosine and tokens to signal."""
    setting = made_up_setting(1, "x", "", axes_of(16))
    rows = leaders(setting["rows"])
    setting["rows"] = [row for row in rows if row["tokens_to_signal"]][:8]
    drawing = drawing_of(render_variance_page(document_of([setting], None)), "x: progress against budget")
    for k in range(8):
        curve = paths(drawing, f"stroke: var(--tone-{k + 1})", "stroke-width: 1.5")[0]
        ((x, y),) = marks(drawing, f"--tone-{k + 1}")
        assert np.interp(x, *curve.T) == pytest.approx(y, abs=0.3)
        assert np.all(np.diff(curve[:, 1]) <= 0.2), "y grows downwards in a drawing"


def test_at_as_many_tokens_as_to_signal_half_is_gained():
    setting = made_up_setting(1, "x", "", axes_of(16))
    setting["rows"] = [row for row in setting["rows"] if row["label"] == "remax"]
    setting["budget"] = setting["rows"][0]["tokens_to_signal"]
    setting["rows"][0]["progress"] = 0.5
    setting["best"] = []
    drawing = drawing_of(render_variance_page(document_of([setting], None)), "x: progress against budget")
    (curve,) = paths(drawing, "stroke: var(--tone-1)", "stroke-width: 1.5")
    budget = next(
        line for line in paths(drawing, "stroke: var(--faint)", "stroke-width: 0.9") if line[0, 0] == line[1, 0]
    )[0, 0]
    level = sorted(
        {line[0, 1] for line in paths(drawing, "stroke: var(--line)", "stroke-width: 0.8") if line[0, 1] == line[1, 1]}
    )
    one, zero = level[0], level[-2]  # the last is the ground
    assert np.interp(budget, *curve.T) == pytest.approx((one + zero) / 2, abs=0.3)


def test_a_curve_is_bold_where_it_is_best():
    setting = made_up_setting(1, "x", "", axes_of(16))
    setting["best"] = [{"label": "rloo K=16", "from": None, "to": 100.0}, {"label": "remax", "from": 100.0, "to": None}]
    for row in setting["rows"]:
        row["frontier"] = row["label"] in ("rloo K=16", "remax")
    drawing = drawing_of(render_variance_page(document_of([setting], None)), "x: progress against budget")
    first, second = sorted(paths(drawing, "stroke-width: 4"), key=lambda line: line[0, 0])
    thin = max(paths(drawing, "stroke-width: 1.5"), key=len)
    assert first[0, 0] == thin[0, 0] and second[-1, 0] == thin[-1, 0]
    assert 0 < second[0, 0] - first[-1, 0] < 6


def test_on_a_diagonal_a_token_buys_the_same():
    setting = made_up_setting(1, "x", "", axes_of(16))
    setting["rows"] = [row for row in setting["rows"] if row["estimator"] == "rloo"]
    for row in setting["rows"]:
        row["tokens_to_signal"] = 300.0
    drawing = drawing_of(render_variance_page(document_of([setting], None)), "x: what a token buys")
    (line,) = paths(drawing, "stroke: var(--tone-1)", "stroke-opacity: 0.45")
    diagonals = [each for each in paths(drawing, "stroke: var(--line)", "stroke-width: 0.9") if len(each) == 2]
    slope = np.divide(*(line[-1] - line[0])[::-1])
    assert diagonals and all(
        np.divide(*(each[1] - each[0])[::-1]) == pytest.approx(slope, rel=1e-3) for each in diagonals
    )
    assert slope > 0, "y grows downwards in a drawing"


@pytest.mark.slow
def test_the_axis_of_a_sweep_shows_the_figures_of_the_best_options():
    document = horizon_sweep()
    lines, text = along_axis(document), page_of("numbers")
    for k, name in enumerate(prominent(document), 1):
        drawing = drawing_of(text, "Relative bias against horizon")
        line = paths(drawing, f"stroke: var(--tone-{k})", "stroke-width: 1.8")[0]
        values = np.array([point.row["relative_bias"] for point in lines[name]])
        kl = paths(drawing, f"stroke: var(--tone-{prominent(document).index('kl-k1-loss') + 1})", "stroke-width: 1.8")[
            0
        ][0, 1]
        zero = paths(drawing, f"stroke: var(--tone-{prominent(document).index('rloo') + 1})", "stroke-width: 1.8")[0][
            0, 1
        ]
        assert (zero - line[:, 1]) / (zero - kl) == pytest.approx(values, abs=2e-3)
        assert np.diff(line[:, 0]) == pytest.approx(np.full(4, line[1, 0] - line[0, 0]), abs=1e-3), "horizons double"


def test_words_of_an_axis_are_groups_of_dots():
    drawing = drawing_of(page_of("words"), "tokens to signal by rewards")
    told = [each.text for each in drawing.iter("text")]
    places = [told.index(word) for word in ("dense", "sparse", "lexical")]
    assert places == sorted(places)
    document = rewards_sweep()
    for word, start, end, setting in zip(
        ("dense", "sparse", "lexical"), places, [*places[1:], None], document["settings"]
    ):
        best = [row["label"] for row in leaders(setting["rows"]) if row["tokens_to_signal"]]
        assert told[start + 1 : end][: len(best)] == best, word


def test_one_setting_has_its_advice_once_and_several_have_it_with_their_names():
    one = DOCUMENTS["one"]["settings"][0]["recommendation"]
    assert "".join(Page(page_of("one")).text).count(one) == 1
    (shown,) = re.findall(r"<h1><small>.*?</small>(.*?)</h1>", page_of("one"))
    assert one.startswith(shown.rstrip("."))
    cards = re.findall(r'<a class=card href="#setting-(\d)"><strong>(.*?)</strong>.*?<b>(.*?)</b>', page_of("three"))
    assert cards == [
        (str(k), each["name"], each["recommendation"]) for k, each in enumerate(three_settings()["settings"])
    ]
    assert page_of("three").index("class=card") < page_of("three").index("<svg")


PROBE = """
<script>
const seen = {};
const order = (table) => [...table.tBodies[0].rows].filter((row) => !row.hidden)
  .map((row) => row.cells[0].dataset.sort);
const press = (table, name) => [...table.tHead.rows[0].cells].find((cell) => cell.textContent === name)
  .querySelector("button").click();
const type = (text) => { search.value = text; search.dispatchEvent(new Event("input")); };
const chip = (kind) => chips.find((button) => button.dataset.kind === kind).click();
seen.start = order(tables[0]);
press(tables[0], "tokens to signal"); seen.byNoise = order(tables[0]); seen.other = order(tables[1]);
press(tables[0], "tokens to signal"); seen.byNoiseDown = order(tables[0]);
press(tables[0], "progress"); seen.again = order(tables[0]);
type("RLOO"); seen.search = tables.map(order); seen.found = document.querySelector(".found").textContent; type("");
chip("frontier"); seen.frontier = order(tables[2]);
chip("biased"); seen.both = order(tables[2]); chip("frontier"); chip("biased");
const setting = document.querySelector("#setting-1");
setting.open = false; location.hash = "#setting-1"; followLink(); seen.opened = setting.open;
seen.wide = document.documentElement.scrollWidth <= innerWidth;
seen.download = download.href.startsWith("blob:");
document.body.dataset.seen = JSON.stringify(seen);
</script>
"""


@pytest.mark.slow
@in_chromium
def test_the_script_sorts_and_filters(tmp_path):
    document = three_settings()
    catch = "<script>const errors = []; onerror = (message) => errors.push(message); "
    catch += (
        "addEventListener('securitypolicyviolation', (event) => errors.push(event.violatedDirective));</script><title>"
    )
    told = "<script>document.documentElement.dataset.errors = JSON.stringify(errors);</script>"
    text = render_variance_page(document).replace("<title>", catch, 1).replace("</body>", f"{PROBE}{told}</body>")
    page = Page(opened(text, tmp_path))
    attributes = {tag: attributes for tag, attributes in page.tags if tag in ("html", "body")}
    assert attributes["html"]["data-errors"] == "[]"
    seen = json.loads(attributes["body"]["data-seen"])
    first, second, third = document["settings"]

    def labels(rows: list[dict]) -> list[str]:
        return [row["label"] for row in rows]

    noise = {row["label"]: row["tokens_to_signal"] for row in first["rows"]}
    assert seen["start"] == seen["again"] == labels(by_progress(first["rows"]))
    assert seen["other"] == labels(by_progress(second["rows"])), "the other tables stay as they are"
    known = [noise[label] for label in seen["byNoise"][:-1]]
    assert known == sorted(known) and [noise[label] for label in seen["byNoiseDown"][:-1]] == known[::-1]
    assert seen["byNoise"][-1] == seen["byNoiseDown"][-1] == "kl-k1-loss"  # no figure: last in both directions
    assert all(sorted(each) == ["rloo K=16", "rloo K=2", "rloo K=4", "rloo K=8"] for each in seen["search"])
    assert seen["found"] == f"12 of {sum(len(each['rows']) for each in document['settings'])} rows"
    frontier = [row for row in by_progress(third["rows"]) if row["frontier"]]
    assert seen["frontier"] == labels(frontier) and seen["both"] == labels(
        [row for row in frontier if row["verdict"] == "biased"]
    )
    assert 0 < len(seen["both"]) < len(seen["frontier"])
    assert seen["opened"] and seen["wide"] and seen["download"]


@pytest.mark.slow
def test_what_was_given_values_is_marked():
    document = three_settings()
    rows = document["settings"][0]["rows"]
    shown = worth_showing(rows)[0]
    shown["given_values"] = True
    text = printed(document, 80)
    assert f"{shown['label']}°" in text and text.count("° was given values of states") == 1
    assert render_variance_page(document).count("<small>was given values of states</small>") == 1
