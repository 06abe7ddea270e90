"""`diagnose`: planted faults are told apart by what the weights do, repairs are certified, and what is written down
shows the verdict again. The estimators are functions without a name."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_mdp import GRPO, PPO, Diagnosis, Estimator, EstimatorError, certify, diagnose, groups, random_instance
from llm_mdp.cli.verify import verify
from llm_mdp.estimators.practices import Tempered, ZeroStdFiltered
from llm_mdp.estimators.values import leave_one_out
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.instance_files import instance_from_dict, read_instance
from llm_mdp.own import UsageError
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.verify.check import load_estimator
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.problem import Problem

Weight = Callable[[Evidence, int], Tensor]


def own(weight: Weight, size: int = 3) -> Estimator:
    """An estimator of which nothing but its weights is to be known."""

    @dataclass(frozen=True)
    class Anonymous(Estimator):
        group_size: int = size

        def advantages(self, evidence):
            return weight(evidence, self.group_size)

    return Anonymous()


def centred(evidence: Evidence, k: int) -> Tensor:
    """The sound weight that faults are planted in: unbiased."""
    reward = evidence.response_reward
    return (reward - (leave_one_out(reward, k) if k > 1 else 0.5))[..., None]


def less_best(evidence: Evidence, k: int) -> Tensor:
    reward = groups(evidence.response_reward, k)
    return (reward - reward.amax(-1, keepdim=True)).flatten(-2)[..., None]


def less_mean(evidence: Evidence, k: int) -> Tensor:
    reward = groups(evidence.response_reward, k)
    return (reward - reward.mean(-1, keepdim=True)).flatten(-2)[..., None]


def over_std(evidence: Evidence, k: int) -> Tensor:
    reward = groups(evidence.response_reward, k)
    spread = reward.std(-1, keepdim=True).expand_as(reward).flatten(-2)
    return centred(evidence, k) / (spread[..., None] + 1e-4)


def over_length(evidence: Evidence, k: int) -> Tensor:
    return centred(evidence, k) / evidence.rollouts.length[..., None]


def without_truncated(evidence: Evidence, k: int) -> Tensor:
    return centred(evidence, k) * (evidence.rollouts.finish == 0)[..., None]


def less_later(evidence: Evidence, k: int) -> Tensor:
    token = evidence.rollouts.tokens.clamp(min=0).double()
    return centred(evidence, k) - 0.3 * (token.flip(-1).cumsum(-1).flip(-1) - token)


def less_batch(evidence: Evidence, k: int) -> Tensor:
    reward = evidence.response_reward
    rows = reward.shape[-1]
    return ((reward * rows - reward.sum(-1, keepdim=True)) / (rows - 1))[..., None]


def with_gamma(evidence: Evidence, k: int) -> Tensor:
    return centred(evidence, k) * 0.9 ** torch.arange(evidence.rollouts.mask.shape[-1], dtype=torch.float64)


def shifted_mask(evidence: Evidence, k: int) -> Tensor:
    mask = evidence.rollouts.mask
    return centred(evidence, k) * torch.cat([mask[..., 1:], torch.zeros_like(mask[..., :1])], -1)


def without_eos(evidence: Evidence, k: int) -> Tensor:
    return centred(evidence, k) * (evidence.rollouts.tokens != 0)


def without_sign(evidence: Evidence, k: int) -> Tensor:
    return centred(evidence, k).abs()


FAULTS: dict[str, Weight] = {
    "own-response": less_best,
    "group-statistic": over_std,
    "length": over_length,
    "mask-truncated": without_truncated,
    "later-tokens": less_later,
    "mixed-prompts": less_batch,
    "position": with_gamma,
    "mask-shifted": shifted_mask,
    "mask-eos": without_eos,
    "sign-lost": without_sign,
}
"""The ten planted faults, by the finding that each must have."""


def kinds(diagnosis: Diagnosis) -> list[str]:
    return [finding.kind for finding in diagnosis.findings]


@pytest.mark.parametrize("kind", FAULTS)
def test_each_planted_fault_is_told_apart_and_its_repair_is_unbiased(kind):
    found = diagnose(own(FAULTS[kind]), counter_example=False)
    assert kinds(found) == [kind]
    if kind == "mixed-prompts":  # one prompt at a time it is sound
        assert found.certificate is not None and found.certificate.verdict == "unbiased" and not found.repairs
        assert "group rewards by prompt" in str(found)
        return
    assert found.certificate is not None and found.certificate.verdict == "biased"
    assert found.findings[0].verdict_after == "unbiased" and found.findings[0].remedy
    assert found.cure is not None and found.cure.kinds == (kind,)
    assert f"with {kind} repaired it is unbiased, exactly" in str(found)


@settings(max_examples=8, deadline=None)
@given(
    kind=st.sampled_from([kind for kind in FAULTS if kind != "mixed-prompts"]),
    seed=st.integers(0, 99),
    n_prompts=st.integers(1, 2),
    gamma=st.sampled_from([1.0, 0.8]),
)
def test_the_finding_does_not_depend_on_the_instance(kind, seed, n_prompts, gamma):
    instance = random_instance(3, 3, gamma=gamma, n_prompts=n_prompts, seed=seed)
    found = diagnose(own(FAULTS[kind]), instance, counter_example=False)
    assert kinds(found) == [kind] and found.cure is not None and found.cure.kinds == (kind,)


@pytest.mark.parametrize("kind", ["length", "mask-truncated", "position", "later-tokens", "mask-eos"])
def test_faults_of_tokens_show_without_a_group(kind):
    found = diagnose(own(FAULTS[kind], size=1), counter_example=False)
    assert kinds(found) == [kind] and found.cure is not None


def test_a_baseline_that_counts_the_response_itself_is_named_with_its_factor():
    found = diagnose(own(less_mean, size=4), counter_example=False)
    assert kinds(found) == ["own-response"] and "0.75 = (K - 1)/K" in str(found) and "1.333" in str(found)
    assert found.certificate is not None and found.certificate.verdict == "proportional"
    assert found.cure is not None and found.cure.kinds == ("own-response",)


def test_a_constant_divisor_is_not_taken_for_an_own_response():
    found = diagnose(own(lambda evidence, k: centred(evidence, k) / 5), counter_example=False)
    assert kinds(found) == ["constant-factor"] and "times 5" in str(found)


def test_the_negative_gradient_is_not_taken_for_a_lost_sign():
    assert kinds(diagnose(own(lambda evidence, k: -centred(evidence, k)), counter_example=False)) == ["sign-reversed"]


def test_two_faults_need_both_repairs():
    found = diagnose(
        own(lambda evidence, k: over_std(evidence, k) / evidence.rollouts.length[..., None]), counter_example=False
    )
    assert kinds(found) == ["length", "group-statistic"]
    assert found.cure is not None and found.cure.kinds == ("length", "group-statistic")
    assert [each.verdict for each in found.repairs if len(each.kinds) == 1] == ["biased", "biased"]
    alone = [finding.bias_after for finding in found.findings]
    assert found.certificate is not None and found.certificate.relative_bias is not None
    assert all(0.1 < bias < found.certificate.relative_bias for bias in alone if bias is not None)


def test_direction_first_then_the_rest():
    found = diagnose(GRPO(group_size=3), counter_example=False)
    assert found.direction is not None and found.direction.kinds == ("group-statistic",)
    assert found.direction.scale == pytest.approx(2 / 3)
    assert found.cure is not None and found.cure.kinds == ("group-statistic", "own-response")


def test_a_length_of_every_response_is_no_single_factor():
    def each_by_its_length(evidence, k):
        per_token = evidence.response_reward / evidence.rollouts.length
        return (per_token - leave_one_out(per_token, k))[..., None]

    found = diagnose(own(each_by_its_length), counter_example=False)
    assert kinds(found)[0] == "lengths" and found.cure is not None and "lengths" in found.cure.kinds


@pytest.mark.parametrize("weight", [centred, lambda evidence, k: evidence.response_reward[..., None]])
def test_no_fault_is_found_in_a_sound_estimator(weight):
    found = diagnose(own(weight))
    assert not found.findings and not found.repairs and found.counter_example is None
    assert "no fault found" in str(found)


def test_what_lies_in_the_drawing_is_found_there():
    assert kinds(diagnose(Tempered(), counter_example=False)) == ["temperature"]
    filtered = diagnose(ZeroStdFiltered(group_size=3), counter_example=False)
    assert filtered.cure is not None and filtered.cure.kinds == ("groups-left-out",)


def test_a_wrong_critic_is_found_by_serving_the_exact_one():
    instance = random_instance(3, 3, gamma=0.9, seed=1)
    found = diagnose(PPO(critic=instance.value, lam=0.0), instance, counter_example=False)
    assert kinds(found) == ["values"] and found.findings[0].verdict_after == "unbiased"


PROBLEM = Problem(random_instance(3, 3, gamma=0.9, seed=1))


@pytest.mark.parametrize(
    ("row", "found", "cured"),
    [
        ("gae-discounted", ["factor-ahead"], True),
        ("abc-return-to-go", ["factor-ahead"], True),
        ("grpo-length", ["length", "group-statistic", "own-response"], True),
        ("trepo-eq31", ["factor-ahead", "later-tokens", "constant-factor"], True),
        ("trepo-greedy-values", ["branches"], True),
        ("trepo-interpolated", ["stand-ins"], False),
        ("rto-eq41", ["no-reward"], False),
        ("ppo-second-epoch", ["second-update"], True),
    ],
)
def test_rows_of_the_ledger_have_the_cause_that_their_reason_names(row, found, cured):
    claim = next(claim for claim in CLAIMS if claim.id == row)
    estimator = claim.build(PROBLEM)
    assert estimator is not None
    diagnosis = diagnose(estimator, PROBLEM.instance, counter_example=False)
    assert kinds(diagnosis) == found and (diagnosis.cure is not None) is cured
    assert cured or "none of the known kinds" in str(diagnosis)


@pytest.mark.slow
def test_no_biased_row_is_called_sound():
    for claim in CLAIMS:
        if claim.target == "reward" and claim.expected(PROBLEM) in ("biased", "proportional"):
            estimator = claim.build(PROBLEM)
            if estimator is None or certify(estimator, PROBLEM.instance).verdict == "unbiased":
                continue
            diagnosis = diagnose(estimator, PROBLEM.instance, counter_example=False)
            assert diagnosis.findings or diagnosis.note, claim.id


def test_what_is_none_of_the_known_kinds_is_said_to_be():
    clipped = diagnose(own(lambda evidence, k: centred(evidence, k).clamp(-1, 1)), counter_example=False)
    assert kinds(clipped) == ["transformed-reward"] and clipped.cure is None
    assert "none of the known kinds" in str(clipped)
    constant = diagnose(own(lambda evidence, k: torch.ones_like(evidence.rollouts.logp)), counter_example=False)
    assert kinds(constant) == ["no-reward"]


def test_an_estimator_that_cannot_be_shown_other_rewards_says_so():
    true = Problem(random_instance(3, 3, gamma=0.9, seed=1)).enumeration.response_reward

    def only_true(evidence, k):
        if float(evidence.response_reward.abs().max()) > 1.5 * float(true.abs().max()):
            raise OverflowError("rewards are too large")
        return less_best(evidence, k)

    found = diagnose(own(only_true), random_instance(3, 3, gamma=0.9, seed=1), counter_example=False)
    assert "could not be shown other rewards and lengths (OverflowError: rewards are too large)" in str(found)
    assert found.certificate is not None and found.certificate.verdict == "biased"


def test_an_instance_that_is_too_short_is_replaced_by_one_of_as_many_tokens():
    def for_two_tokens(evidence, k):
        assert int(evidence.rollouts.tokens.max()) < 2
        return over_length(evidence, k)

    found = diagnose(own(for_two_tokens), random_instance(2, 2, gamma=0.8), counter_example=False)
    assert kinds(found) == ["length"] and found.instance == "V=2 T=3 γ=0.8"
    elsewhere = diagnose(own(for_two_tokens), counter_example=False)
    assert elsewhere.certificate is None and "it cannot be run here (AssertionError" in str(elsewhere)


def test_what_is_no_estimator_is_refused():
    with pytest.raises(EstimatorError, match="takes \\(evidence\\); write a function of one parameter"):
        diagnose(lambda evidence: evidence.response_reward)


def test_mixed_worlds_are_told_in_words():
    def over_worlds(evidence, k):
        return (evidence.response_reward - evidence.response_reward.mean())[..., None]

    found = diagnose(own(over_worlds))
    assert kinds(found) == ["mixed-worlds"] and found.certificate is None and "not certified" in str(found)


def test_too_large_groups_are_refused_before_any_work():
    with pytest.raises(TooLarge, match="groups of 40 responses are too many to enumerate on the smallest instance"):
        diagnose(own(centred, size=40))
    with pytest.raises(UsageError, match=r"is no FILE\.py:CLASS"):
        diagnose("grpo")


def test_the_counter_example_is_small_round_and_shows_the_verdict():
    estimator = own(over_std, size=4)
    example = diagnose(estimator).counter_example
    assert example is not None and example.group_size == 2
    instance = instance_from_dict(json.loads(json.dumps(example.to_json()["instance"])))
    mdp = instance.mdp
    assert (mdp.vocab_size, mdp.horizon, mdp.gamma) == (2, 2, 1.0)
    again = certify(own(over_std, size=2), instance)
    assert again.verdict == "biased" and again.relative_bias is not None and again.relative_bias > 0.05
    assert "K = 2: biased" in example.words


# --- on the command line ----------------------------------------------------------------------------------------------

MINE = '''
from dataclasses import dataclass
from llm_mdp import Estimator, groups

@dataclass(frozen=True)
class Mine(Estimator):
    """Less the mean, over the length."""
    group_size: int = 3

    def advantages(self, evidence):
        reward = groups(evidence.response_reward, self.group_size)
        centred = (reward - reward.mean(-1, keepdim=True)).flatten(-2)
        return centred[..., None] / evidence.rollouts.length[..., None]

class Fixed(Estimator):
    def __init__(self):
        object.__setattr__(self, "group_size", 2)

    def advantages(self, evidence):
        return evidence.response_reward[..., None]
'''


def typed(words: str) -> int:
    return verify(words.split())


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def test_verify_shows_the_diagnosis_and_writes_what_reproduces_it(mine, capsys):
    asked = "mine.py:Mine --vocab 3 --horizon 3 --json r.json --html r.html --save-counter-example small.json"
    assert typed(asked) == 1
    row = json.loads((mine / "r.json").read_text())["claims"]["Mine"]
    assert [finding["kind"] for finding in row["diagnosis"]["findings"]] == ["length", "own-response"]
    shown, page = " ".join(capsys.readouterr().out.split()), (mine / "r.html").read_text()
    for text in (shown, page):
        assert "with length and own-response repaired it is unbiased, exactly" in text
    command = row["diagnosis"]["command"].split()
    assert command[:2] == ["llm-mdp", "verify"] and " ".join(command) in shown
    assert verify([*command[2:], "--json", "again.json"]) == 1
    again = json.loads((mine / "again.json").read_text())
    assert again["claims"]["Mine"]["verdict"] == row["verdict"] == "biased" and again["group_size"] == 2
    assert read_instance("small.json").mdp.horizon == 2


def test_a_sound_estimator_has_no_diagnosis_and_no_file(mine, capsys):
    sound = MINE.replace(" / evidence.rollouts.length[..., None]", " * 1.5")
    (mine / "mine.py").write_text(sound)
    assert typed("mine.py:Mine --vocab 2 --horizon 2 --json r.json --save-counter-example small.json") == 0
    assert "diagnosis" not in json.loads((mine / "r.json").read_text())["claims"]["Mine"]
    assert not (mine / "small.json").exists()
    assert "Mine was not found biased: small.json is not written" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("option", "size"), [("", 3), ("--group-size 2", 2), ("--group-size 4", 4)])
def test_what_ran_is_what_is_said_to_have_run(mine, option, size, capsys):
    assert typed(f"mine.py:Mine --vocab 2 --horizon 2 --json r.json {option}") == 1
    document = json.loads((mine / "r.json").read_text())
    instance = instance_from_dict(document["instance"])
    ran = certify(load_estimator("mine.py:Mine", size), instance)
    assert document["claims"]["Mine"]["relative_bias"] == pytest.approx(ran.relative_bias, rel=1e-9)
    assert document["group_size"] == size and f"{size} responses to a prompt" in capsys.readouterr().out


def test_a_group_size_that_does_not_reach_the_class_is_refused(mine):
    with pytest.raises(UsageError, match="draws 2 responses to a prompt and cannot be given 4; leave --group-size out"):
        typed("mine.py:Fixed --group-size 4 --quick")


def test_a_counter_example_is_written_of_one_own_estimator(mine):
    with pytest.raises(UsageError, match=r"and 0 are named; name one as FILE\.py:CLASS"):
        typed("rloo --quick --save-counter-example small.json")
