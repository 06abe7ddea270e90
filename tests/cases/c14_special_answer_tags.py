"""Answer tags that are special tokens of the tokenizer. Source: huggingface/trl#2897, OpenRLHF/OpenRLHF#775, verl-project/verl#715.
Right: only padding and end tokens are left out of the graded text; tags that the policy wrote stay (or the environment says that it would lose them)."""
import numpy as np
from _case import Case

from llm_mdp_envs.tasks.reasoning import ReasoningGym
from llm_mdp_envs.text import byte_tokenizer

case, tags = Case(), ["<answer>", "</answer>", "<think>", "</think>"]
for name, add in (("special", lambda t: t.add_special_tokens({"additional_special_tokens": tags})), ("ordinary added", lambda t: t.add_tokens(tags)), ("no", lambda t: None)):
    tokenizer = byte_tokenizer()
    add(tokenizer)
    env = ReasoningGym("chain_sum", tokenizer=tokenizer, size=5)
    question = env.question(np.random.default_rng(0))
    written = env.encode_response(f"<think>easy</think><answer>{question.secret.secret['answer']}</answer>")
    row = np.full((1, 256), -1)
    row[0, : len(written)] = written
    case.check(f"reward of the right answer, {name} tokens for the tags", 1.0, lambda: float(env.score([question], row, row >= 0).reward[0]))
case.end()
