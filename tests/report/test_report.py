"""Reports: what a made-up ledger with every claim id looks like in a terminal, on the page and in a README."""

import io
import itertools
import json
import math
import random
import re

import pytest
from rich.console import Console

from llm_mdp.report.drawings import MAX_EDGES, points, ring_label, tree_edges, tree_svg
from llm_mdp.report.ledger_page import render_ledger
from llm_mdp.report.readme import BEGIN, END, ledger_markdown, main, update_readme
from llm_mdp.report.rows import (
    Span,
    bias,
    claim_rows,
    figure_text,
    headline,
    named_instances,
    number,
    ratio,
    span_text,
)
from llm_mdp.report.terminal import BRIEF, print_report, progress_bar
from tests.report.pages import HOSTILE, Page, in_chromium, opened

CLAIMS = """
theorems | lemma-1 | unbiased | γᵗ⁻¹ Q(W₀,ₜ₋₁, wₜ) weights step t | Lemma 1, Eq. 4
theorems | lemma-2 | unbiased | any c(W₀,ₜ₋₁) may be added to the weight of step t | Lemma 2
theorems | theorem-1 | unbiased | U(W₀,ₜ), the expected response reward given the prefix, weights step t \
| Theorem 1, Eq. 21
theorems | theorem-2 | unbiased | U(W₀,ₜ) - U(W₀,ₜ₋₁) weights step t | Theorem 2, Eq. 28
theorems | corollary-1 | unbiased | the response-level reward RM(W) weights every step | Corollary 1, Eq. 27
theorems | remark-2-return-to-go | unbiased | γᵗ⁻¹ Gₜ of the hidden token rewards | Remark 2
theorems | remark-3-undiscounted | biased | Gₜ without the weight γᵗ⁻¹ | Remark 3, Eq. 26
theorems | remark-4-whitening | biased | advantage normalisation does not change the expected policy gradient | Remark 4
theorems | actor-critic | unbiased | reward on the last token only, exact critic | Trajectory Policy Gradient Theorem
theorems | remark-5-merged | unbiased | half of every token reward observed, all merged into RM | Remark 5, Eq. 30
theorems | remark-5-token-level | unbiased | token-level half as return-to-go, response-level half as a whole | Remark 5
theorems | gae-exact-0 | unbiased | GAE(0), exact values | Remark 6
theorems | gae-exact-0.95 | unbiased | GAE(0.95), exact values | Remark 6
theorems | gae-exact-1 | unbiased | GAE(1), exact values | Remark 6
theorems | gae-wrong-0 | biased | GAE(0) with a wrong critic | Remark 6
theorems | gae-wrong-0.95 | biased | GAE(0.95) with a wrong critic | Remark 6
theorems | gae-wrong-1 | unbiased | GAE(1) with a wrong critic | Remark 6
theorems | gae-discounted | biased | GAE with γ = 0.9 on a reward at the last token | Eq. 33
algorithms | reinforce | unbiased | RM(W) weights every step | Williams 1992
algorithms | rloo | unbiased | RM minus the mean of the other responses | Ahmadian et al. 2024, Eq. 1
algorithms | rloo-eq36 | proportional | RM minus the sum of all K divided by K - 1, as printed | the paper, Eq. 36
algorithms | remax | unbiased | RM minus the reward of the greedy response | Li et al. 2024; the paper, Eq. 38
algorithms | grpo-mean | proportional | RM minus the group mean | the paper, Eq. 34, without the division
algorithms | grpo | biased | (RM - mean) / (std + 1e-4) over the group | Shao et al. 2024; the paper, Eq. 34
algorithms | grpo-length | biased | the same divided by the length of the response | Shao et al. 2024, Eq. 3
algorithms | dr-grpo | proportional | RM minus the group mean, divided by the horizon | Liu et al. 2025
algorithms | trepo | unbiased | TRePO with fresh draws for the baseline, D = every step \
| the project's repair of Algorithm 1
algorithms | trepo-eq31 | biased | TRePO with pooled draws, D = every step | the paper, Eq. 31
algorithms | trepo-interpolated | biased | TRePO, D = {1, 3, …}, advantages interpolated linearly \
| the paper, Algorithm 1
algorithms | trepo-segment | unbiased | TRePO, the same D, one advantage a segment | the project's repair
algorithms | trepo-lambda | unbiased | GAE(0.5) over fresh branch means | the project's repair
algorithms | trepo-own-length | biased | D placed at half of the response's own length | the paper, Algorithm 1
algorithms | trepo-greedy-values | biased | greedy completions instead of draws everywhere | the paper, Algorithm 1
algorithms | trepo-greedy-baseline | unbiased | greedy completions in the baseline only | the project's repair
algorithms | vineppo | unbiased | branch means at boundaries every 2 tokens | Kazemnejad et al. 2024
algorithms | ma-rlhf | unbiased | macros of 2 tokens, exact values, λ = 0.95 over macros | Chai et al. 2024
algorithms | r3hf | unbiased | differences of the reward model on prefixes, return-to-go | the paper, Eq. 43
algorithms | abc-return-to-go | biased | attention-weighted rewards, return-to-go | the paper, Eq. 42
algorithms | abc-full-sum | unbiased | attention-weighted rewards, all of them summed | the project's repair
algorithms | rto | unbiased | β log(π*/ref) as token reward | Zhong et al. 2024
algorithms | rto-eq41 | biased | π*/ref as token reward | the paper, Eq. 41
algorithms | prime | report | implicit token rewards plus a leave-one-out outcome | the paper, Eq. 44–45
algorithms | dpo-optimum | holds | the DPO minimiser equals ref exp(RM/β)/Z | the paper, Eq. 40
practices | kl-k1-reward | unbiased | log(π/ref) in the reward | Schulman 2020
practices | kl-k1-loss | biased | log(π/ref) as a loss per token | Schulman 2020
practices | kl-k2-loss | biased | ½ log²(π/ref) as a loss per token | Schulman 2020
practices | kl-k3-loss | biased | ref/π - 1 - log(ref/π) as a loss per token | Schulman 2020
practices | kl-k3-reward | biased | the same in the reward | Schulman 2020
practices | length-normalised | biased | RM divided by the response's own length | common
practices | token-mean | biased | the loss averaged over all tokens of the group | common
practices | masked-truncated | biased | responses that hit the horizon are masked | DAPO, "overlong filtering"
practices | zero-std-filtered | report | groups with equal rewards are left out of the average \
| DAPO, "dynamic sampling"
practices | temperature-mismatch | biased | responses drawn at temperature 0.6, scored at 1 | common
practices | ppo-second-epoch | biased | a second epoch of the clipped surrogate on the same samples \
| Schulman et al. 2017
"""

PAPER = {
    "remark-2-return-to-go": ("misprint", "“Gₜ = Σₖ r(wₖ)”, without the discounts (Remark 2)"),
    "remark-4-whitening": ("stronger than stated", "“does not change the expected policy gradient” (Remark 4)"),
    "rloo-eq36": ("misprint", "“1/(K-1) Σ over k” (Eq. 36), under the name leave-one-out"),
    "grpo": ("differs", "“REINFORCE-based RL algorithms, such as GRPO” (Corollary 1)"),
}
"""What the paper says of some rows, and what was found of it; of the other theorems it says what was computed."""

REASONS = {
    "unbiased": "the weight differs from U(W₀,ₜ) only by what the prefix fixes, which has mean zero against the score",
    "proportional": "each response is in its own baseline, which takes away a constant share of the gradient",
    "biased": "the weight depends on wₜ beyond the reward, so part of the signal is cancelled, another at every prefix",
    "holds": "the two distributions agree in every log-probability",
    "fails": "the two distributions differ",
    "undecided": "the confidence interval still holds both verdicts; draw more samples",
    "not computed": "this estimator needs one reward for every prefix, which an n-gram instance does not list",
}

INSTANCES = [
    {"vocab_size": 3, "horizon": 3, "gamma": 1.0, "policy": "tabular"},
    {"vocab_size": 2, "horizon": 4, "gamma": 0.7, "policy": "tabular"},
    {"vocab_size": 4, "horizon": 3, "gamma": 0.9, "policy": "ngram", "prompts": 2},
    {"vocab_size": 3, "horizon": 3, "gamma": 1.0, "policy": "transformer"},
    {"vocab_size": 4, "horizon": 5, "gamma": 1.0, "policy": "tabular"},
]


def instance_file(rng: random.Random, vocab_size: int, horizon: int, gamma: float, prompts: int = 1) -> dict:
    """A random instance file with one node for every prefix (of every prompt)."""

    def node(prompt: int, prefix: tuple[int, ...]) -> dict:
        entry = {
            "prefix": list(prefix),
            "logits": [rng.gauss(0, 1) for _ in range(vocab_size)],
            "token_reward": [rng.gauss(0, 1) for _ in range(vocab_size)],
            "reference_logits": [0.0] * vocab_size,
            "value": rng.gauss(0, 1),
        }
        return entry | {"prompt": prompt} if prompts > 1 else entry

    prefixes = [
        prefix for length in range(horizon) for prefix in itertools.product(range(1, vocab_size), repeat=length)
    ]
    instance = {"vocab_size": vocab_size, "eos": 0, "horizon": horizon, "gamma": gamma}
    if prompts > 1:
        instance["prompts"] = [{"tokens": [prompt], "probability": 1 / prompts} for prompt in range(prompts)]
    return instance | {"nodes": [node(prompt, prefix) for prompt in range(prompts) for prefix in prefixes]}


def claim(rng: random.Random, line: str, sampled: bool, gamma: float) -> tuple[str, dict]:
    """One claim's object; relative bias, scale and cosine belong to one vector."""
    group, claim_id, expected, statement, source = (cell.strip() for cell in line.split(" | "))
    if claim_id == "remark-3-undiscounted" and gamma == 1:
        expected = "unbiased"
    verdict = "biased" if expected == "report" else expected
    along, across = {"unbiased": (1.0, 0.0), "proportional": (2 / 3, 0.0)}.get(
        verdict, (rng.gauss(0.8, 0.5), rng.expovariate(2))
    )
    noise = rng.uniform(1e-3, 5e-3) if sampled else rng.uniform(1e-16, 9e-16)
    figures = {
        "relative_bias": math.hypot(along - 1, across) + noise,
        "scale": along + noise,
        "cosine": along / math.hypot(along, across),
        "trace_covariance": rng.lognormvariate(0, 1.5),
        "tokens": 3.5,
        "tokens_to_signal": None if sampled else rng.lognormvariate(4, 1.5),
    }
    if claim_id == "kl-k1-loss":
        figures |= {"relative_bias": 1.0, "scale": 0.0, "cosine": 0.0, "tokens_to_signal": None}
    if verdict == "holds":
        figures = dict.fromkeys(figures)
    body = {
        "group": group,
        "verdict": verdict,
        "expected": expected,
        "holds": True,
        **figures,
    }
    repair = "use the leave-one-out mean; it costs nothing" if verdict in ("biased", "proportional") else None
    body |= {"statement": statement, "source": source, "reason": REASONS[verdict], "repair": repair}
    as_stated = ("agrees", f"“{statement}” ({source})") if group == "theorems" else ("practice", "")
    body["finding"], body["paper"] = PAPER.get(claim_id, as_stated)
    if sampled:
        bound = figures["relative_bias"] or 0.0
        text = f"relative bias below {bound + 0.01:.3f} with 99 % confidence"
        body |= {"bound": bound + 0.01, "confidence": 0.9999, "samples": 1_000_000, "certificate": text}
        for key in ("bias", "scale", "cosine"):
            value = figures["relative_bias" if key == "bias" else key]
            body[f"{key}_interval"] = None if value is None else [max(value - 0.01, 0.0), value + 0.01]
    return claim_id, body


def set_verdict(document: dict, number: int, claim_id: str, verdict: str, holds: bool | None) -> None:
    """Change one verdict of one instance; a claim that is not computed has no figures."""
    body = document["instances"][number]["claims"][claim_id]
    body.update(verdict=verdict, holds=holds, reason=REASONS[verdict])
    if verdict == "not computed":
        body.update(relative_bias=None, scale=None, cosine=None, trace_covariance=None, tokens_to_signal=None)


def single_document(seed: int = 0, sampled: bool = False, number: int = 0) -> dict:
    """The document of one instance."""
    rng = random.Random(seed + number)
    setting = dict(INSTANCES[number])
    policy = setting.pop("policy")
    instance = instance_file(rng, **setting)
    gradient = [rng.gauss(0, 0.2) for node in instance["nodes"] for _ in node["logits"]]
    prompts = " 2 prompts" if "prompts" in instance else ""
    return {
        "instance": instance,
        "name": f"V={instance['vocab_size']} T={instance['horizon']} γ={instance['gamma']:g}{prompts}",
        "policy": policy,
        "mode": "sampled" if sampled else "exact",
        "group_size": 3,
        "beta": 0.7,
        "seed": 0,
        "version": "0.1.0",
        "command": "llm-mdp verify --seed 0" + (" --sampled 1000000" if sampled else ""),
        "J": rng.gauss(0, 1),
        "grad_norm": math.sqrt(sum(x * x for x in gradient)),
        "gradient": gradient,
        "claims": dict(claim(rng, line, sampled, instance["gamma"]) for line in CLAIMS.strip().splitlines()),
    }


def several_document(sampled: bool = False) -> dict:
    """The document of five instances, with two contradictions, one undecided verdict and one that was not computed."""
    document = {"instances": [single_document(0, sampled, number) for number in range(len(INSTANCES))]}
    set_verdict(document, 1, "remax", "biased", False)
    document["instances"][1]["claims"]["remax"].update(relative_bias=0.31, scale=0.79, cosine=0.961)
    set_verdict(document, 4, "trepo-own-length", "unbiased", False)
    set_verdict(document, 2, "abc-full-sum", "undecided", None)
    set_verdict(document, 3, "vineppo", "not computed", None)
    return document


def claim_ids(document: dict) -> list[str]:
    return list((document.get("instances") or [document])[0]["claims"])


def hostile_document() -> dict:
    """Words of somebody else in every field that holds words."""
    document = several_document()
    document["instances"][0].update(name=HOSTILE, policy=HOSTILE, command=HOSTILE, version=HOSTILE)
    for body in document["instances"][0]["claims"].values():
        body.update(statement=HOSTILE, source=HOSTILE, reason=HOSTILE, repair=HOSTILE, paper=HOSTILE, finding=HOSTILE)
    document["instances"][0]["claims"][HOSTILE] = dict(document["instances"][0]["claims"]["rloo"], holds=False)
    return document


def printed(document: dict, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_report(document, console)
    return console.export_text()


def one_line(text: str) -> str:
    return " ".join(text.split())


DOCUMENTS = {
    "one": single_document(),
    "sampled": single_document(sampled=True),
    "several": several_document(),
    "hostile": hostile_document(),
}


# Terminal


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("name", ["one", "sampled", "several"])
def test_terminal_shows_every_claim_in_full(name, width):
    document = DOCUMENTS[name]
    text = printed(document, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    for claim_id in claim_ids(document):
        row = next(line for line in lines if line.strip().split(" ")[0] == claim_id)
        verdicts = {instance["claims"][claim_id]["verdict"] for instance in document.get("instances", [document])}
        assert any(f" {verdict}" in row for verdict in verdicts), row


@pytest.mark.parametrize("width", [80, 120])
def test_narrow_terminal_shows_all_words(width):
    document = single_document(sampled=True)
    document["claims"] = dict(itertools.islice(document["claims"].items(), 15, 15 + BRIEF - 1))
    text = one_line(printed(document, width))
    for body in document["claims"].values():
        for words in (body[key] for key in ("statement", "paper", "source", "reason", "repair", "certificate")):
            assert words is None or one_line(words) in text


def test_of_many_claims_a_narrow_terminal_explains_those_that_are_not_right_or_not_as_the_paper_says():
    document = single_document()
    text = one_line(printed(document, 80))
    assert "Rows that are right are shown without reasons" in text
    for claim_id, body in document["claims"].items():
        assert one_line(body["statement"]) in text
        explained = one_line(f"paper: {body['paper']}") in text and body["reason"] in text
        if claim_id in PAPER or body["verdict"] == "biased":
            assert explained or not body["paper"], claim_id
        elif body["paper"]:
            assert not explained, claim_id


def test_wide_terminal_shows_words_and_ranges():
    words = set(printed(several_document(), 200).split())
    for body in several_document()["instances"][0]["claims"].values():
        assert set(one_line(f"{body['statement']} {body['reason']} {body['repair'] or ''}").split()) <= words


def test_terminal_marks_contradictions_and_only_those():
    text = printed(several_document(), 80)
    assert text.count("CONTRADICTION") == 2
    assert "⚠ remax: biased, but expected unbiased (on V=2 T=4 γ=0.7)" in text
    assert "⚠ trepo-own-length: unbiased, but expected biased (on V=4 T=5 γ=1)" in text
    assert "Exit status 1" in text and "Exit status 0" not in text
    assert printed(several_document(), 200).count("CONTRADICTION") == 2
    clean = printed(single_document(), 80)
    assert "⚠" not in clean and "Exit status 0" in clean


def test_a_verdict_that_depends_on_gamma_is_no_contradiction():
    document = several_document()
    rows = {row.id: row for row in claim_rows(named_instances(document))}
    row = rows["remark-3-undiscounted"]
    assert dict(row.verdicts) == {"unbiased": 3, "biased": 2} and row.status == "as expected" and not row.contradictions
    assert rows["prime"].status == "without expectation" and rows["remax"].status == "contradiction"
    assert rows["vineppo"].status == "as expected"


def test_summary_counts():
    text = one_line(printed(several_document(), 120))
    assert (
        "54 claims on 5 instances: 50 as expected, 2 without expectation (prime, zero-std-filtered), 2 in contra"
        in text
    )


def test_the_headline_says_what_was_found_of_the_paper_and_of_practices():
    """Not the exit status: of the theorems all are the paper's, and two rows of its algorithms."""
    said = headline(claim_rows(named_instances(several_document())))
    assert said[0] == (
        "Of 20 statements of the paper, 16 agree, 2 are misprints (remark-2-return-to-go, rloo-eq36), 1 holds more "
        "strongly than stated (remark-4-whitening) and 1 differs (grpo)."
    )
    assert said[1].startswith("34 practices of the field: ") and "1 holds" in said[1]
    for width in (80, 200):
        assert one_line(" ".join(said)) in one_line(printed(several_document(), width))
    (shown,) = re.findall(r"<h1><small>.*?</small>(.*?)</h1>", render_ledger(single_document()))
    counted = re.sub(r" \(.*?\)", "", said[0])  # pages have filters, and sections by finding, in place of the names
    assert shown == counted and counted in " ".join(ledger_markdown(several_document()).replace("\\", "").split())


def test_a_finding_is_not_said_where_the_run_did_not_bear_it_out():
    document = single_document()
    for claim_id in ("lemma-1", "lemma-2"):
        document["claims"][claim_id].update(verdict="undecided", holds=None)
    document["claims"]["grpo"].update(verdict="unbiased", holds=False)
    (said, _) = headline(claim_rows(named_instances(document)))
    assert said.startswith("Of 20 statements of the paper, 14 agree, 2 are misprints") and "differs" not in said
    assert said.endswith("and 3 were not settled by this run.")


def test_a_practice_counts_as_biased_if_one_instance_shows_it():
    rows = claim_rows(named_instances(several_document()))
    found = {row.id: row for row in rows}
    assert (found["remax"].verdict, found["remax"].gravest) == ("unbiased", "biased")
    assert (found["abc-full-sum"].gravest, found["rloo-eq36"].gravest) == ("undecided", "proportional")


def test_an_estimator_of_your_own_is_neither_the_papers_nor_the_fields():
    document = single_document()
    document["claims"] = {"Mine": document["claims"]["rloo"] | {"group": "yours", "paper": "", "verdict": "biased"}}
    assert headline(claim_rows(named_instances(document))) == ["Mine: biased."]
    assert "practice" not in printed(document, 80).split("In brackets")[0]
    assert Page(render_ledger(document)).count("span", "finding") == 0


def test_a_document_from_before_findings_can_still_be_shown():
    document = single_document()
    for body in document["claims"].values():
        for key in ("paper", "finding", "tokens", "tokens_to_signal"):
            del body[key]
    assert "54 practices of the field" in printed(document, 80) and "54 practices" in render_ledger(document)


def test_terminal_takes_words_literally():
    assert one_line(printed(hostile_document(), 120)).count("[red]markup[/red]") > 4 * 50


def test_instances_with_one_name_are_told_apart():
    names = [name for name, _ in named_instances(several_document())]
    assert len(set(names)) == 5 and names[0] == "V=3 T=3 γ=1 #1"


def test_a_document_without_claims_is_refused_in_words():
    with pytest.raises(ValueError, match="--json FILE"):
        named_instances({"vocab_size": 3})


def test_progress_accepts_updates():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with progress_bar(console, total=2) as done:
        done("lemma-1")
        done("theorem-1")
    assert "theorem-1" in console.file.getvalue() and "2/2" in console.file.getvalue()


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (bias, 0.0, "<1e-9"),
        (bias, 3.1e-16, "<1e-9"),
        (bias, 1.1e-9, "1.10e-9"),
        (bias, 0.31234, "0.312"),
        (bias, None, "–"),
        (ratio, 1 + 1e-15, "1"),
        (ratio, -1e-17, "0"),
        (ratio, 2 / 3, "0.667"),
        (ratio, 1 - 4.2e-5, "1-4e-5"),
        (ratio, -1 + 4.2e-5, "-1+4e-5"),
        (ratio, 1.02, "1.02"),
        (ratio, 250.4, "250"),
        (number, 0.0, "0"),
        (number, 1e-10, "1.00e-10"),
        (number, 0.5, "0.500"),
        (number, 999.7, "1000"),
        (number, 123.4, "123"),
        (number, -2.5e7, "-2.50e7"),
    ],
)
def test_figures(write, value, text):
    assert write(value) == text


def row_of(claim_id: str, *bodies: dict):
    found = [(str(place), {"claims": {claim_id: body}}) for place, body in enumerate(bodies)]
    (row,) = claim_rows(found)
    return row


def test_tokens_to_signal_are_said_where_they_are_defined_and_why_not_elsewhere():
    bodies = single_document()["claims"]
    right, wrong, silent = (bodies[name] | {"group": "practices"} for name in ("rloo", "grpo", "kl-k1-loss"))
    right, wrong = right | {"tokens_to_signal": 31.62}, wrong | {"tokens_to_signal": 2.0}
    assert figure_text(row_of("x", right), "tokens_to_signal") == "31.6"
    assert figure_text(row_of("x", wrong), "tokens_to_signal") == "biased"
    assert figure_text(row_of("x", silent), "tokens_to_signal") == "no signal"
    assert figure_text(row_of("x", right, wrong), "tokens_to_signal") == "31.6"
    assert figure_text(row_of("x", right, right | {"tokens_to_signal": 1234.5}), "tokens_to_signal") == "31.6…1234"
    assert figure_text(row_of("x", bodies["dpo-optimum"]), "tokens_to_signal") == "–"
    lines = printed(single_document(), 80).splitlines()
    assert next(line for line in lines if line.startswith("kl-k1-loss")).endswith("no signal")


def test_a_sampled_figure_is_shown_by_its_interval_and_never_as_below_1e_minus_9():
    body = single_document(sampled=True)["claims"]["rloo"] | {"relative_bias": 0.0, "scale": 1.0, "cosine": 1.0}
    body |= {"bias_interval": [0.0, 0.012], "scale_interval": [0.63, 0.7], "cosine_interval": [0.9999, 1.0]}
    row = row_of("x", body)
    texts = [figure_text(row, key) for key in ("relative_bias", "scale", "cosine", "tokens_to_signal")]
    assert texts == ["0…0.0120", "0.630…0.700", "1-1e-4…1", "–"]
    unsaid = row_of("x", body | {"bias_interval": None})
    assert figure_text(unsaid, "relative_bias") == "–"
    for width in (80, 200):
        text = printed(single_document(sampled=True), width)
        assert "<1e-9" not in text
    assert "&lt;1e-9" not in render_ledger(single_document(sampled=True))
    assert figure_text(row_of("x", body | {"samples": None}), "relative_bias") == "<1e-9"


def test_what_is_undecided_says_why_and_what_would_settle_it():
    document = single_document(sampled=True)
    document["claims"]["grpo-mean"].update(
        verdict="undecided",
        holds=None,
        undecided="not unbiased; proportional not excluded",
        certificate="undecided: not unbiased; proportional not excluded",
        needed=2_400_000,
    )
    for text in (one_line(printed(document, 80)), one_line(printed(document, 200)), render_ledger(document)):
        shown = text.split('<script type="application/json"')[0]
        assert shown.count("not unbiased; proportional not excluded") == 1 and "about 2,400,000 responses would" in text
    assert "1 not settled (grpo-mean)" in one_line(printed(document, 120))
    row = next(row for row in claim_rows(named_instances(document)) if row.id == "grpo-mean")
    assert row.repairs == []  # nothing was found to need one
    document["claims"]["grpo-mean"].update(verdict="biased")
    row = next(row for row in claim_rows(named_instances(document)) if row.id == "grpo-mean")
    assert row.needed is None and row.repairs


def test_spans():
    assert span_text(Span(0.25, 0.5)) == "0.250…0.500"
    assert span_text(Span(1 - 1e-12, 1 + 1e-12), ratio) == "1"
    row = next(row for row in claim_rows(named_instances(several_document())) if row.id == "remax")
    assert row.span("relative_bias").high == 0.31 and row.span("scale").low == 0.79


# Page


@pytest.mark.parametrize("name", DOCUMENTS)
def test_page_is_well_formed_and_holds_the_document(name):
    page = Page(render_ledger(DOCUMENTS[name]))
    assert not page.open
    assert json.loads(page.scripts["document"]) == DOCUMENTS[name]
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert page.count("tbody", "claim") == len(claim_ids(DOCUMENTS[name]))


def test_page_needs_no_network():
    text = render_ledger(single_document())
    assert not re.search(r"""(src|href|action)=["']?(https?:)?//|@import|url\((?!#)""", text)


def test_page_shows_hostile_words_as_text():
    page = Page(render_ledger(hostile_document()))
    tags = {tag for tag, _ in page.tags}
    assert "img" not in tags
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "".join(page.text).count(HOSTILE) > 54


def test_embedded_json_has_no_markup():
    text = Page(render_ledger(hostile_document())).scripts["document"]
    assert not set("<>&") & set(text) and text.count("alert(1)") > 54


def test_page_refuses_nan_and_names_its_place():
    document = single_document()
    document["claims"]["rloo"]["cosine"] = math.nan
    with pytest.raises(ValueError, match=r"\['claims'\]\['rloo'\]\['cosine'\] is nan"):
        render_ledger(document)


@pytest.mark.parametrize("number", range(4))
def test_tree_has_an_edge_for_every_token_of_every_prefix(number):
    document = single_document(number=number)
    instance = document["instance"]
    assert Page(render_ledger(document)).count("path", "edge") == len(instance["nodes"]) * instance["vocab_size"]


def test_a_large_tree_is_not_drawn():
    document = single_document(number=4)
    assert len(document["instance"]["nodes"]) * 4 > MAX_EDGES
    page = Page(render_ledger(document))
    assert page.count("svg", "tree") == 0 and any("484 edges, too many" in text for text in page.text)


def test_tree_labels_by_hand():
    """Fair coin, end token 0, rewards 4 then 8 with γ = 1/2: RM(1 0) = 4 + 8/2."""
    nodes = [{"prefix": [], "logits": [0.0, 0.0], "token_reward": [1.0, 4.0]}]
    nodes.append({"prefix": [1], "logits": [0.0, math.log(3)], "token_reward": [8.0, 0.0]})
    instance = {"vocab_size": 2, "eos": 0, "horizon": 2, "gamma": 0.5, "nodes": nodes}
    leaves = [edge for edge in tree_edges(instance, 0) if edge.last]
    assert [(*leaf.prefix, leaf.token) for leaf in leaves] == [(0,), (1, 0), (1, 1)]
    assert [leaf.collected for leaf in leaves] == pytest.approx([1.0, 8.0, 4.0])
    assert [leaf.reach for leaf in leaves] == pytest.approx([0.5, 0.125, 0.375])
    page = Page(tree_svg(instance, 0))
    assert {"8.00", "12.5 %", "1 eos"} <= set(page.text)
    titles = [text for text in page.text if text.startswith("prefix")]
    assert "expected RM 3.00" in titles[0] and "expected RM 5.00" in titles[1]  # 1/2 + 8/8 + 4 · 3/8, and 8/4 + 4 · 3/4


def test_tree_without_end_token_and_with_one_step():
    nodes = [{"prefix": [], "logits": [0.0, 1.0, 2.0], "token_reward": [0.0, 0.0, 0.0]}]
    instance = {"vocab_size": 3, "eos": None, "horizon": 1, "gamma": 1.0, "nodes": nodes}
    page = Page(tree_svg(instance, 0))
    assert page.count("path", "edge") == 3 and "eos" not in page.text


def test_the_label_of_a_ring_gives_way_to_a_dot():
    first = ring_label(0.25, 600.0, 400.0, [])
    second = ring_label(0.25, 600.0, 400.0, [first])
    assert abs(second[0] - first[0]) > 26 or abs(second[1] - first[1]) > 12
    assert ring_label(0.25, 600.0, 400.0, [(first[0], first[1] - 100)]) == first


def test_plane_shows_bias_as_distance_and_cosine_as_angle():
    rows = claim_rows(named_instances(single_document()))
    found = {point.row.id: point for point in points([(row, "") for row in rows])}
    for row in rows:
        body = row.entries[0][1]
        if body["verdict"] == "biased" and body["cosine"]:
            point = found[row.id]
            assert math.dist((point.along, point.across), (1, 0)) == pytest.approx(body["relative_bias"])
            assert point.along / math.hypot(point.along, point.across) == pytest.approx(body["cosine"])
    assert "dpo-optimum" not in found


PROBE = """
<script>
const seen = {};
const order = () => claims.filter((claim) => !claim.hidden)
  .toSorted((a, b) => a.compareDocumentPosition(b) & 4 ? -1 : 1)
  .map((claim) => claim.querySelector(".toggle").textContent);
const header = (column) => headers[column].querySelector("button");
seen.start = order();
header(2).click();
seen.byBias = order(); seen.ariaSort = headers[2].ariaSort;
seen.groups = groups.filter((group) => !group.hidden).length;
header(2).click(); header(2).click();
header(3).click(); seen.byScale = order(); header(3).click(); header(3).click();
seen.again = order(); seen.ariaNone = headers[2].ariaSort;
search.value = "RETURN-TO-GO"; search.dispatchEvent(new Event("input"));
seen.search = order(); search.value = ""; search.dispatchEvent(new Event("input"));
const chip = chips.find((button) => button.dataset.verdict === "contradiction");
chip.click(); seen.wrong = order();
document.querySelector("input[name=view][value='2']").click(); seen.wrongInView = order(); chip.click();
seen.view = inView(cells(document.querySelector("#claim-21"))[2]).dataset.sort;
const toggle = document.querySelector("#claim-0 .toggle");
seen.closed = document.querySelector("#more-0").hidden; toggle.click();
const misprint = chips.find((button) => button.dataset.finding === "misprint");
misprint.click(); seen.misprints = order(); misprint.click();
seen.opened = !document.querySelector("#more-0").hidden && toggle.ariaExpanded === "true";
seen.download = download.href.startsWith("blob:") && json.length;
document.body.dataset.seen = JSON.stringify(seen);
</script>
"""


@in_chromium
def test_the_script_sorts_filters_and_changes_the_view(tmp_path):
    document = several_document()
    catch = "<script>onerror = (message) => { document.documentElement.dataset.error = message; }</script><title>"
    text = render_ledger(document).replace("<title>", catch, 1).replace("</body>", f"{PROBE}</body>")
    page = Page(opened(text, tmp_path))
    attributes = {tag: attributes for tag, attributes in page.tags if tag in ("html", "body")}
    assert "data-error" not in attributes["html"]
    seen = json.loads(attributes["body"]["data-seen"])

    def worst(claim_id: str) -> float:
        known = [instance["claims"][claim_id]["relative_bias"] for instance in document["instances"]]
        return max((value for value in known if value is not None), default=-1.0)

    ids = claim_ids(document)
    assert seen["start"] == seen["again"] == ids
    assert [worst(claim_id) for claim_id in seen["byBias"]] == sorted(map(worst, ids), reverse=True)
    assert seen["byBias"][-1] == seen["byScale"][-1] == "dpo-optimum"  # no figures: last in both directions
    assert (seen["ariaSort"], seen["ariaNone"], seen["groups"]) == ("descending", "none", 0)
    assert {"remark-2-return-to-go", "abc-return-to-go"} <= set(seen["search"]) and "rloo" not in seen["search"]
    assert (seen["wrong"], seen["wrongInView"]) == (["remax", "trepo-own-length"], ["remax"])
    assert ids[21] == "remax" and float(seen["view"]) == 0.31
    assert seen["misprints"] == ["remark-2-return-to-go", "rloo-eq36"]
    assert seen["closed"] and seen["opened"] and seen["download"]


# README


def readme_with(tmp_path, between: str = ""):
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n\n{BEGIN}{between}{END}\n\nThe end.\n", encoding="utf-8")
    return path


def test_readme_is_updated_once_and_keeps_the_rest(tmp_path):
    path = readme_with(tmp_path, "\nstale figures\n")
    assert update_readme(several_document(), path)
    text = path.read_text(encoding="utf-8")
    assert not update_readme(several_document(), path) and path.read_text(encoding="utf-8") == text
    assert text.startswith(f"# Title\n\n{BEGIN}\n") and text.endswith(f"{END}\n\nThe end.\n") and "stale" not in text
    for claim_id in claim_ids(several_document()):
        assert text.count(f"| `{claim_id}` |") == 1
    assert "Generated by `llm-mdp verify --seed 0` on" in text and text.count("**⚠") == 2


def test_readme_command(tmp_path, capsys):
    results, path = tmp_path / "results.json", readme_with(tmp_path)
    results.write_text(json.dumps(several_document()), encoding="utf-8")
    before = path.read_text(encoding="utf-8")
    assert main([str(results), str(path), "--check"]) == 1 and path.read_text(encoding="utf-8") == before
    assert main([str(results), str(path)]) == 0
    assert main([str(results), str(path), "--check"]) == 0
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["no markers", f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}"])
def test_readme_without_a_place_is_refused(tmp_path, text, capsys):
    path, results = tmp_path / "README.md", tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="once each, in this order"):
        update_readme(single_document(), path)
    results.write_text(json.dumps(single_document()), encoding="utf-8")
    with pytest.raises(SystemExit):
        main([str(results), str(path)])
    assert path.read_text(encoding="utf-8") == text and "once each" in capsys.readouterr().err


def test_readme_tables_survive_hostile_words():
    text = ledger_markdown(hostile_document())
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 10 for row in rows) and len(rows) == 55 + 3 * 2
    in_cells = re.sub(r"^\| `.*?` \|", "", "\n".join(rows), flags=re.MULTILINE)  # code spans show markup as it is
    assert not re.search(r"(?<!\\)<(?!br>)", in_cells)
