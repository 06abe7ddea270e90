"""Models whose turn ends with a token that is not tokenizer.eos_token (Gemma <end_of_turn>, Phi <|end|>). Sources: huggingface/trl#7039, google/tunix#842,
databricks/compose-rl#31, huggingface/transformers#32110. Right: a response ends at any end token of the model's generation_config (or the run refuses / warns)."""
import pathlib
import tempfile

import numpy as np
from _case import Case

from llm_mdp_agents.lm.loading import load_policy, tokenizer_of
from llm_mdp_envs.tasks.math_problems import Math
from llm_mdp_envs.text import byte_tokenizer
from llm_mdp_envs.token_env import TokenEnv

case, folder = Case(), pathlib.Path(tempfile.mkdtemp()) / "model"
tokenizer = byte_tokenizer()
tokenizer.add_special_tokens({"eos_token": "<eos>", "additional_special_tokens": ["<turn>", "<over>"]})
tokenizer.chat_template = "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<over>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
over = tokenizer.convert_tokens_to_ids("<over>")
policy = load_policy(dict(model_type="llama", vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
                          eos_token_id=[tokenizer.eos_token_id, over], bos_token_id=None, pad_token_id=None))
policy.causal_lm.generation_config.eos_token_id = [tokenizer.eos_token_id, over]
policy.causal_lm.save_pretrained(folder)
tokenizer.save_pretrained(folder)
task = Math([{"question": "9+9?", "answer": "#### 18"}], tokenizer=str(folder), chat=True, horizon=24)
question = task.question(np.random.default_rng(0))
text = lambda words: tokenizer.encode(words, add_special_tokens=False)
reply = [*text("#### 18"), over, *text("\n"), tokenizer.convert_tokens_to_ids("<turn>"), *text("user\n#### 5")]
env = TokenEnv(task)


def episode():
    env.reset(options={"question": question})
    for n, token in enumerate(reply, 1):
        _, reward, over_now, _, _ = env.step(token)
        if over_now:
            break
    return n, bool(over_now), float(reward)


row = np.full((1, 24), -1)
row[0, : len(reply)] = reply
case.check("the episode ends with the turn (tokens, over, reward)", (8, True, 1.1), episode)
case.check("what is graded", "#### 18", lambda: task.replies([question], row)[0].text)
case.check("reward", 1.1, lambda: float(task.score([question], row, row >= 0).reward[0]))
loaded = load_policy(folder, tokenizer=tokenizer_of(folder))
case.check("the model's own end tokens are known", [tokenizer.eos_token_id, over], lambda: list(loaded.causal_lm.generation_config.eos_token_id))
case.end()
