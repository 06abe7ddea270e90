"""The page of a run: right figures, nothing that a model wrote becomes markup, and it is there for every kind of
run."""

import json
import math
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_mdp_agents.training.curves import POINTS, running_mean, thin, to_series
from llm_mdp_agents.training.records import CONFIG, METRICS, SAMPLES, Records
from llm_mdp_agents.training.run_report import (
    CHARACTERS,
    IN_TABLE,
    duration,
    summary,
    write_report,
)

EVIL = """<script>alert(1)</script><img src=x onerror="alert(2)">' " & {{settings}} </pre></title></svg> \u202e\ud800"""
SHOWN = EVIL.replace("\ud800", "?")


class Page(HTMLParser):
    """The elements of a page, their attributes and the text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def texts(html: str) -> set[str]:
    """What stands between two tags."""
    return {unescape(text) for text in re.split("<[^>]*>", html)}


def make_run(
    folder: Path, metrics: list[dict], samples: dict[int, list[dict]] | None = None, config: dict | None = None
) -> str:
    if config is not None:
        (folder / CONFIG).write_text(json.dumps(config))
    with Records(folder, loggers=("none",)) as records:
        for step, values in enumerate(metrics, start=1):
            records.metrics(step, values)
        for step, each in (samples or {}).items():
            records.samples(step, each)
    path = write_report(folder)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


def drawings(html: str) -> list[ElementTree.Element]:
    """Every drawing of the page; fails if one is not well-formed."""
    return [
        ElementTree.fromstring(re.sub(r"xlink:href", "href", each))
        for each in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    ]


def line_of(drawing: ElementTree.Element, colour: str, width: str = "stroke-width: 2") -> np.ndarray:
    """The points (n, 2) of the line of a colour."""
    lines = [
        each.get("d")
        for each in drawing.iter("path")
        if {f"stroke: var({colour})", width} <= set(each.get("style", "").split("; "))
    ]
    return np.array(re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", lines[0]), dtype=float)


def test_summary():
    lines = [
        {"step": k + 1, "reward": 0.32 - 0.02 * (k % 2) if k < 190 else 0.9 + 0.04 * (k % 2), "seconds": 3.6}
        for k in range(200)
    ]
    assert summary(to_series(lines)) == "reward 0.310 → 0.920 in 200 steps, 12 min"
    lines[0]["eval/reward"], lines[-1]["eval/reward"] = 0.25, 0.75
    assert summary(to_series(lines)) == "reward 0.310 → 0.920, evaluation 0.250 → 0.750 in 200 steps, 12 min"
    assert summary(to_series([{"step": 1, "reward": 0.5}])) == "reward 0.500 in 1 step"
    odd = {"step": 1, "reward": None, "nonfinite": ["reward"]}
    assert summary(to_series([odd, {"step": 2, "reward": 2.0}])) == "reward 2.00 in 2 steps"
    assert summary(to_series([{"step": 1, "reward": None}])) == "reward – in 1 step"
    assert summary(to_series([{"step": 3, "skipped": 1.0}])) == "in 3 steps"
    assert summary({}) == "No step has been recorded yet."


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.25, "0.250 s"), (48.4, "48 s"), (90, "2 min"), (720, "12 min"), (5399, "1 h 30 min"), (12_000, "3 h 20 min")],
)
def test_duration(seconds, words):
    assert duration(seconds) == words


values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


@given(values, st.integers(1, 45))
def test_thinning_keeps_means_and_ranges(value, most):
    value = np.array(value)
    step, mean, low, high = thin(np.arange(len(value)), value, most)
    assert len(step) == min(most, len(value))
    assert low.min() == value.min() and high.max() == value.max()
    assert np.all(np.diff(step) > 0)
    if most >= len(value):
        assert np.array_equal(mean, value) and np.array_equal(low, high)
    elif len(value) % most == 0:
        assert mean == pytest.approx(value.reshape(most, -1).mean(1), abs=1e-6)


@given(values, st.integers(0, 30))
def test_running_mean_is_the_mean_of_the_neighbours_that_there_are(value, half):
    value = np.array(value)
    expected = [value[max(0, k - half) : k + half + 1].mean() for k in range(len(value))]
    assert running_mean(value, 2 * half + 1) == pytest.approx(np.array(expected), abs=1e-6)


def test_a_curve_shows_its_values(tmp_path):
    reward = [0.1, 0.9, 0.3, 0.4, 0.35, 0.8]
    html = make_run(tmp_path, [{"reward": each, "eval/reward": 1 - each} for each in reward])
    broad, narrow = drawings(html)
    for drawing in (broad, narrow):
        for colour, shown in (("--unbiased", np.array(reward)), ("--proportional", 1 - np.array(reward))):
            x, y = line_of(drawing, colour).T
            assert np.corrcoef(x, range(6))[0, 1] == pytest.approx(1, abs=1e-6)
            assert np.corrcoef(y, shown)[0, 1] == pytest.approx(-1, abs=1e-6), "y grows downwards in a drawing"
    assert {"Reward", "training"} <= texts(html) and "exact" not in texts(html)


def test_the_interval_of_an_evaluation_is_drawn_around_it(tmp_path):
    line = {"eval/reward": 0.5, "eval/reward_low": 0.4, "eval/reward_high": 0.6}
    html = make_run(tmp_path, [line, line | {"eval/reward": 0.55}])
    areas = [
        each
        for each in drawings(html)[0].iter("use")
        if each.get("style") == "fill: var(--proportional); fill-opacity: 0.16"
    ]
    assert len(areas) == 1
    assert "95 %: 0.400 to 0.600" in html
    assert len(drawings(html)) == 2, "the edges have no curves of their own"
    single = tmp_path / "single"
    single.mkdir()
    assert "stroke-opacity: 0.3" in make_run(single, [line])


EVERY_METRIC = [
    "reward",
    "reward_std",
    "kl",
    "entropy",
    "length",
    "gradient_norm",
    "groups_with_signal",
    "signal_to_noise",
    "learning_rate",
    "loss",
    "tokens",
    "tokens_per_second",
    "seconds",
    "truncated",
    "eval/reward",
    "eval/reward_low",
    "eval/reward_high",
    "eval/greedy_reward",
    "eval/exact_reward",
    "critic/loss",
    "reward_model/loss",
    "skipped",
]


@pytest.mark.parametrize("steps", [0, 1, 2, 60])
def test_every_length_of_run_has_a_page_of_its_own(tmp_path, steps):
    generator = np.random.default_rng(steps)
    metrics = [dict(zip(EVERY_METRIC, generator.random(len(EVERY_METRIC)))) for _ in range(steps)]
    html = make_run(tmp_path, metrics)
    page = Page(html)
    assert len(drawings(html)) == (18 if steps else 0)
    assert "script" not in page.tags and "link" not in page.tags and "img" not in page.tags
    assert not [
        value for name, value in page.attributes if name in ("src", "href", "xlink:href") and not value.startswith("#")
    ]
    assert not re.search(r"url\((?!#)|#0a0b|\bnan\b|\binf\b", html)
    ids = [value for name, value in page.attributes if name == "id"]
    definitions = {value[1:] for name, value in page.attributes if name == "xlink:href"}
    assert definitions <= set(ids) and len(ids) == len(set(ids))
    assert "No samples were recorded." in page.text and "No configuration was recorded." in page.text
    if steps:
        assert "critic/loss" in page.text and "skipped" in page.text and "eval/reward_low" not in page.text
    else:
        assert "No step has been recorded yet." in page.text


def test_values_that_are_not_finite_are_told_and_marked(tmp_path):
    metrics = [{"reward": 0.5, "kl": math.nan if step in (3, 4) else 0.1 * step, "loss": math.inf} for step in range(8)]
    html = make_run(tmp_path, metrics)
    text = Page(html).text
    assert "Not finite: kl in 2 steps, loss in 8 steps." in text
    assert "Not finite in 2 steps, marked below." in text
    reward, _, kl, loss = drawings(html)
    assert len(line_of(kl, "--unbiased")) == 6
    marks = [
        sum("stroke: var(--wrong)" in each.get("style", "") for each in drawing.iter("use"))
        for drawing in (reward, kl, loss)
    ]
    assert marks == [0, 2, 8]


@pytest.mark.parametrize("value", [0.0, 1e300, -1e-300, 5e-324])
def test_extreme_and_constant_values(tmp_path, value):
    assert len(drawings(make_run(tmp_path, [{"reward": value, "loss": value}] * 3))) == 3


def test_nothing_that_a_model_or_a_user_wrote_becomes_markup(tmp_path):
    html = make_run(
        tmp_path,
        [{"reward": 0.5, EVIL: 1.0}],
        {
            1: [
                {"prompt": EVIL + "p", "response": EVIL + "r", "reward": 0.5, EVIL: EVIL},
                {"prompt": [{"role": "user", "content": EVIL}]},
            ]
        },
        {"command": f"llm-mdp train {EVIL}", "agent": EVIL, EVIL: {EVIL: EVIL}},
    )
    page = Page(html)
    assert "script" not in page.tags and "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert {f"{SHOWN}p", f"{SHOWN}r", f"llm-mdp train {SHOWN}"} <= texts(html)
    assert page.text.count(SHOWN) >= 9
    plain = tmp_path / "plain"
    plain.mkdir()
    other = make_run(
        plain,
        [{"reward": 0.5, "x": 1.0}],
        {1: [{"prompt": "p", "response": "r", "reward": 0.5, "x": "x"}, {"prompt": [1]}]},
        {"command": "c", "agent": "a", "x": {"x": "x"}},
    )
    assert page.tags == Page(other).tags
    assert len(drawings(html)) == 3


def test_samples_of_the_beginning_the_middle_and_the_end(tmp_path):
    def answers(step):
        return [{"prompt": f"question {k}", "response": f"answer {k} at {step}", "reward": step / 80} for k in range(2)]

    samples = {step: answers(step) for step in range(0, 81, 10)}
    text, table = Page(make_run(tmp_path, [], samples)).text.split("All that is known of them, at step 80")
    assert re.findall(r"answer \d at 80", table) == ["answer 0 at 80", "answer 1 at 80"]
    assert "The same prompts, and what the policy answered at step 0, step 40, step 80." in text
    assert text.count("question 0") == 1
    assert re.findall(r"answer (\d at \d+)", text) == ["0 at 0", "0 at 40", "0 at 80", "1 at 0", "1 at 40", "1 at 80"]
    assert "reward 0.500" in text


def test_a_long_response_is_cut_and_says_so(tmp_path):
    text = Page(
        make_run(tmp_path, [], {1: [{"prompt": "p", "response": "x" * (CHARACTERS + 1234), "reward": 1.0}]})
    ).text
    assert "x" * CHARACTERS + "… and 1,234 characters more" in text
    assert "x" * (CHARACTERS + 1) not in text


def test_the_configuration_is_a_table(tmp_path):
    config = {"command": ["llm-mdp", "train", "a b"], "seed": 3, "train": {"rate": 1e-5, "critic": {"width": [4, 8]}}}
    html = make_run(tmp_path, [], config=config)
    rows = dict(re.findall(r"<tr><th>(.*?)</th><td>(.*?)</td></tr>", html))
    assert rows == {"seed": "3", "rate": "1e-05", "critic.width": "[4, 8]"}
    assert "<caption>train</caption>" in html
    assert "<code>llm-mdp train 'a b'</code>" in unescape(html)


def test_the_head_says_who_learned_what(tmp_path):
    config = {"agent": {"name": "grpo", "kl": 0.5}, "env": {"id": "Sort", "arguments": {}}, "train": {"seed": 3}}
    facts = re.findall(r"<dt>(\w+)</dt><dd>(\w+)</dd>", make_run(tmp_path, [], config=config))
    assert facts == [("agent", "grpo"), ("env", "Sort"), ("seed", "3")]
    for choice, shown in (("on", ["on"]), ("auto", [])):
        (tmp_path / choice).mkdir()
        page = make_run(tmp_path / choice, [], config=config | {"model": {"fast_matmul": choice}})
        assert re.findall(r"<dt>fast matmul</dt><dd>(\w+)</dd>", page) == shown, "nothing was found"


def test_a_long_run_is_thinned(tmp_path):
    with (tmp_path / METRICS).open("w") as file:
        file.writelines(
            json.dumps({"step": k, "reward": math.sin(k), "kl": k / 1e5, "length": 7.0}) + "\n"
            for k in range(1, 100_001)
        )
    html = write_report(tmp_path).read_text()
    assert len(html) < 300_000
    assert len(line_of(drawings(html)[2], "--unbiased", "stroke-width: 2.2")) <= POINTS
    assert "means of 334 steps, with their range behind them" in html and "100,000 steps" in html


def test_a_run_that_still_runs_and_one_that_is_not_there(tmp_path):
    (tmp_path / METRICS).write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "rew')
    (tmp_path / SAMPLES).write_text('{"step": 1, "resp')
    assert "reward 0.500 in 1 step" in write_report(tmp_path).read_text()
    with pytest.raises(ValueError, match=r"nowhere is not a folder; give the folder of a run"):
        write_report(tmp_path / "nowhere")


def evaluations(values: list[float], **more) -> list[dict]:
    return [{"reward": 0.5, "eval/reward": each, "eval/prompts": 12, **more} for each in values]


def test_a_page_says_whether_its_run_goes_on(tmp_path):
    config = {"train": {"steps": 100}}
    make_run(tmp_path, [{"reward": 0.5, "seconds": 2.0}] * 40, config=config)
    assert "reward 0.500 in 40 of 100 steps, 80 s" in Page((tmp_path / "report.html").read_text()).text
    write_report(tmp_path, running=True)
    assert "reward 0.500 in 40 of 100 steps so far, 80 s" in Page((tmp_path / "report.html").read_text()).text
    assert summary(to_series([{"step": 1, "reward": 0.5}]), 1) == "reward 0.500 in 1 step"


def test_a_page_says_what_was_asked_and_why_the_run_stopped(tmp_path):
    train = {"steps": 100, "stop_after": 2, "save": "best"}
    lines = evaluations([0.25, 0.75, 0.5, 0.75], **{"eval/held_out": 1.0})
    text = Page(make_run(tmp_path, lines, config={"train": train})).text
    assert "Evaluated on 12 questions that training never asks." in text
    assert (
        "Stopped at step 4 of 100: 2 evaluations in a row had no better eval/reward than 0.75 at step 2. The model is "
        "that of step 2, the best by eval/reward." in text
    )
    other = tmp_path / "other"
    other.mkdir()
    text = Page(make_run(other, evaluations([0.25], **{"eval/held_out": 0.0}), config={"train": {"steps": 1}})).text
    assert "Evaluated on 12 questions of the training itself." in text and "Stopped" not in text


def test_parts_and_verdicts_have_drawings_with_training_and_evaluation_together(tmp_path):
    lines = [{"reward": 0.5, "part/answer": 0.25, "detail/verdict/passed": 1.0, "eval/part/answer": 0.5}]
    lines += [{"reward": 0.5, "part/answer": 0.5, "detail/verdict/failed": 0.5, "detail/verdict/passed": 0.5}]
    lines += [{"reward": 0.5, "part/answer": 0.5}]
    html = make_run(tmp_path, lines)
    text = Page(html).text
    section = text.split("What the reward is made of")[1].split("What it says")[0]
    assert [each for each in ("detail/verdict/failed", "detail/verdict/passed", "part/answer") if each in section] == [
        "detail/verdict/failed",
        "detail/verdict/passed",
        "part/answer",
    ]
    assert "evaluation" in section and len(drawings(html)) == 5
    failed = to_series([{"step": number, **line} for number, line in enumerate(lines)])["detail/verdict/failed"]
    assert failed[0].tolist() == [0, 1] and failed[1].tolist() == [0.0, 0.5], "no verdict of a kind is a share of 0"


def test_the_table_shows_all_that_is_known_of_a_response(tmp_path):
    samples = [
        {"prompt": "p", "response": "y" * 2000, "reward": 0.5, "finish": "horizon", "part/answer": 0.25},
        {"prompt": "q", "response": "r", "reward": 1.0, "finish": "eos", "detail/verdict": "passed"},
    ]
    html = make_run(tmp_path, [], {1: samples})
    table = html[html.index("<div class=known") :]
    assert re.findall(r"<th>(.*?)</th>", table)[:6] == [
        "prompt",
        "response",
        "reward",
        "finish",
        "part/answer",
        "detail/verdict",
    ]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(<td>.*?)</tr>", table)]
    assert rows[0][2:] == ["0.500", "horizon", "0.250", ""] and rows[1][2:] == ["1.00", "eos", "", "passed"]
    assert rows[0][1] == "y" * IN_TABLE + " …"
