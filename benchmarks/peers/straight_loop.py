"""GRPO by hand, nothing else: `generate`, one forward, the clipped surrogate, AdamW. What a trainer's comfort is
measured against."""

import torch
from setting import BETAS, EOS, GROUP_SIZE, LEARNING_RATE, MAX_GRAD_NORM, NEW_TOKENS, Meter
from torch import Tensor, nn


def train(model: nn.Module, prompts: Tensor, steps: int, meter: Meter) -> None:
    """`steps` optimiser steps, each on GROUP_SIZE fresh responses to all prompts. Advantages as in TRL, mean over
    tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0)
    prompt = prompts.repeat_interleave(GROUP_SIZE, dim=0)
    meter.start()
    for _ in range(steps):
        text = generate(model, prompt)
        response = text[:, prompts.shape[1] :]
        reward = torch.tensor(meter.responses(response.tolist())).view(-1, GROUP_SIZE)
        advantage = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
        logits = model(text, use_cache=False, logits_to_keep=NEW_TOKENS + 1).logits[:, :-1]
        logp = logits.log_softmax(-1).gather(-1, response[..., None])[..., 0]
        clipped_surrogate(logp, logp.detach(), advantage.view(-1, 1)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        meter.step()


@torch.no_grad()
def generate(model: nn.Module, prompt: Tensor) -> Tensor:
    """Prompts with a response each, drawn from the whole softmax at temperature 1."""
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": NEW_TOKENS, "eos_token_id": EOS, "pad_token_id": EOS}
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)


def clipped_surrogate(logp: Tensor, old_logp: Tensor, advantage: Tensor) -> Tensor:
    ratio = (logp - old_logp).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
