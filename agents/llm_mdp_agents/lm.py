"""A Hugging Face causal language model as a `Policy`: what tables do for the exact ledger, this does for everything else.

Left out here: key-value caches and batched decoding engines; sampling re-reads the prefix, which is fine for tiny models.
"""

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import GPT2Config, GPT2LMHeadModel

from llm_mdp.policies import PolicyModule
from llm_mdp.tree import PAD


class LanguageModelPolicy(PolicyModule):
    """π(wₜ | W₀,ₜ₋₁) from a causal language model; dropout off.

    Args:
        model: any `transformers` causal LM.
        vocab_size: tokens that may be generated, the first ones of the model's vocabulary.
        begin: token put before the prompt, so that even an empty prompt has a first state.
    """

    kind = "transformer"

    def __init__(self, model: nn.Module, vocab_size: int, begin: int):
        super().__init__()
        self.model, self.vocab_size, self.begin = model.eval(), vocab_size, begin

    def logits(self, prompt, tokens):
        shape = tokens.shape
        prompt = prompt.expand(*shape[:-1], prompt.shape[-1]).flatten(0, -2)
        # Prompts are padded on the left: `begin` stands right before the prompt, so that the state before step 0 is never padding;
        # positions count real tokens, and no real token attends to padding.
        lead = pad(prompt, (1, 0), value=PAD)
        begins = (lead == PAD) & (pad(lead[:, 1:], (0, 1)) != PAD)
        lead = torch.where(begins, self.begin, lead)
        text = torch.cat([lead, tokens.reshape(-1, shape[-1])[:, :-1]], dim=1)
        attention = text != PAD
        position = (attention.cumsum(-1) - 1).clamp(min=0)
        output = self.model(input_ids=text.clamp(min=0), attention_mask=attention.long(), position_ids=position, use_cache=False)
        return output.logits[:, -shape[-1] :, : self.vocab_size].reshape(*shape, self.vocab_size)


def tiny_transformer(vocab_size: int, length: int, seed: int = 0, width: int = 8, layers: int = 1) -> LanguageModelPolicy:
    """A randomly initialised GPT-2 in float64, built from a config (nothing is downloaded), small enough for exact verification.

    Args: length: longest prompt plus response. seed: of the initialisation; the global generator is left as it was.
    """
    config = GPT2Config(
        vocab_size=vocab_size + 1, n_positions=length + 1, n_embd=width, n_layer=layers, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=vocab_size, eos_token_id=None, initializer_range=0.5,
    )  # fmt: skip
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config).to(torch.float64)
    return LanguageModelPolicy(model, vocab_size, begin=vocab_size)
