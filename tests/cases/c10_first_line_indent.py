"""Sentencepiece-like tokenizers (Llama 2, Code Llama, Mistral v0.1, TinyLlama, Gemma in some versions) drop one leading space when a response is decoded without its
prompt. Sources: declare-lab/instruct-eval#19, huggingface/transformers#46491 and #47487. Right: what is graded is the text that the policy added to the prompt."""
import numpy as np
from _case import Case
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from llm_mdp_envs.tasks.code import Code
from llm_mdp_envs.tasks.programs import CodingProblem as Problem
from llm_mdp_envs.sandbox import Case as Hidden

case, space = Case(), "\u2581"
vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
for letter in [chr(c) for c in range(33, 127)] + [space, "\n", 2 * space, 4 * space]:
    vocab[letter] = len(vocab)
backend = Tokenizer(models.BPE(vocab=vocab, merges=[(space, space), (2 * space, 2 * space)], unk_token="<unk>"))
backend.normalizer = normalizers.Sequence([normalizers.Prepend(space), normalizers.Replace(" ", space)])
backend.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")

prefix = 'def add(x, y):\n    """Add."""\n'
task = Code([Problem("own/2", prefix, prefix, "add", "    return x + y\n", (Hidden((1, 2), 3),))], tokenizer=tokenizer, horizon=64, workers=1)
question = task.question(np.random.default_rng(0))
before = tokenizer.encode(prefix, add_special_tokens=False)
for body in ("    return x + y\n", "    z = x + y\n    return z\n"):
    written = tokenizer.encode(prefix + body, add_special_tokens=False)
    assert written[: len(before)] == before
    row = np.full((1, 64), -1)
    row[0, : len(written) - len(before) + 1] = [*written[len(before):], tokenizer.eos_token_id]
    case.check(f"reward of {body!r}", 1.0, lambda row=row: float(task.score([question], row, row >= 0).reward[0]))
    case.check(f"text of {body!r}", body, lambda row=row: task.replies([question], row)[0].text)
task.close()
case.end()
