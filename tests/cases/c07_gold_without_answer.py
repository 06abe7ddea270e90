"""Golds that are null, a dict, or hold no answer. Sources: huggingface/open-r1#503, #509, #86, #293.
Right: refuse them when the file is read, naming the problem; else every response to them is worth 0 for ever (or the run dies in the middle)."""
from _case import Case

from llm_mdp_envs.tasks.math_problems import Math

case = Case()


def refused(got):
    """ValueError, at loading"""
    return str(got).startswith("ValueError")


for gold in (None, {"value": "18"}, float("nan"), "I do not know.", "work ####", "\\boxed{}", "", True):
    case.check(f"gold {gold!r}", refused, lambda gold=gold: [answer for _, answer in Math([{"question": "q", "answer": gold}]).problems])
for gold, want in ((18, "18"), ("#### 18", "18"), ("#### 1,234", "1234"), ("x #### 3\n#### 4", "4")):
    case.check(f"control {gold!r}", [want], lambda gold=gold: [answer for _, answer in Math([{"question": "q", "answer": gold}]).problems])
case.check("question None", refused, lambda: Math([{"question": None, "answer": "#### 1"}]).problems)
case.end()
