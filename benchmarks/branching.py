"""How long branches from the prefixes of long responses take: with the keys and values of one reading against reading
prefixes anew.

    python benchmarks/branching.py                       # a Llama of one million parameters, random weights
    python benchmarks/branching.py --width 512 --layers 8

Prints a table and writes benchmarks/results/branching.json. Four contenders draw branches, all but one the same ones
from the same seed:

- branch: `LanguageModelPolicy.branch`; every response is read once, whatever is drawn from it;
- every prefix: `LanguageModelPolicy.sample`; every prefix is read once, and its branches share that;
- generate: Hugging Face's, given one prefix a branch; it keeps keys and values, but nothing is shared (tokens and seed
  are its own);
- every token: `PolicyModule.sample`; the prefix is read again for every token of every branch.

CPU time of one thread, best of the repetitions (every token: one). A sixteenth of the vocabulary ends a branch, so that
branches are as long as `--tokens` says in the mean; cuts are spaced evenly over the response.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import torch
from machine import write_results
from rich.console import Console
from rich.table import Table

from llm_mdp.mdp.tree import PAD, pad_prompts
from llm_mdp.sampling.policies import PolicyModule, prefixes_of
from llm_mdp_agents.lm.loading import small_transformer

RESULTS = Path(__file__).parent / "results" / "branching.json"
VOCAB_SIZE = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt, the same for all responses")
    parser.add_argument("--response", type=int, default=192, help="tokens of a response")
    parser.add_argument("--cuts", type=int, default=4, help="cuts of a response")
    parser.add_argument("--branches", type=int, default=4, help="branches from each cut")
    parser.add_argument("--tokens", type=int, default=16, help="new tokens of a branch, in the mean")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(arguments)
    show(result)
    options = {name: value for name, value in vars(arguments).items() if name != "output"}
    write_results(
        arguments.output, ("torch", "transformers"), {"threads": torch.get_num_threads(), "options": options, **result}
    )


def measure(arguments: argparse.Namespace) -> dict:
    """CPU-seconds of each contender; the ratio of each to `branch`; how far apart the log-probabilities of common
    tokens are."""
    length = arguments.prompt + arguments.response
    policy = small_transformer(VOCAB_SIZE, length, width=arguments.width, layers=arguments.layers)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(VOCAB_SIZE, (1, arguments.prompt), generator=generator).expand(arguments.responses, -1)
    tokens = torch.randint(VOCAB_SIZE, (arguments.responses, arguments.response), generator=generator)
    cuts = torch.linspace(0, arguments.response, arguments.cuts + 2).long()[1:-1]
    row, step = torch.arange(arguments.responses).repeat_interleave(arguments.cuts), cuts.repeat(arguments.responses)
    prefix, n = prefixes_of(tokens, row, step), arguments.branches
    stop = tuple(range(VOCAB_SIZE // arguments.tokens))
    texts = [[*p, *r[r != PAD]] for p, r in zip(prompt[row].tolist(), prefix)]
    padded = pad_prompts([[int(token) for token in text] for text in texts]).repeat_interleave(n, dim=0)

    def options() -> dict:
        return {"eos": None, "horizon": arguments.response, "generator": torch.Generator().manual_seed(1), "stop": stop}

    def generate() -> torch.Tensor:
        torch.manual_seed(1)
        most = arguments.response - int(step.min())
        real = padded != PAD
        # It cannot give every row a length of its own; in the mean the branches end long before that.
        return policy.model.generate(
            padded.clamp(min=0),
            attention_mask=real.long(),
            do_sample=True,
            top_k=0,
            max_new_tokens=most,
            eos_token_id=list(stop),
            pad_token_id=VOCAB_SIZE,
        )

    contenders: dict[str, Callable[[], Any]] = {
        "branch": lambda: policy.branch(prompt, tokens, row, step, n, **options()),
        "every prefix": lambda: policy.sample(prompt[row], n, prefix=prefix, **options()),
        "generate": generate,
        "every token": lambda: PolicyModule.sample(policy, prompt[row], n, prefix=prefix, **options()),
    }
    seconds, drawn = {}, {}
    for name, draw in contenders.items():
        times = []
        for _ in range(1 if name == "every token" else arguments.repetitions):
            start = process_time()
            drawn[name] = draw()
            times.append(process_time() - start)
        seconds[name] = min(times)
    new = int(drawn["branch"].mask.sum() - n * step.sum())
    new_generated = int((drawn.pop("generate")[:, padded.shape[1] :] != VOCAB_SIZE).sum())
    same = {name: (other.tokens == drawn["branch"].tokens).all(-1) for name, other in drawn.items()}
    return {
        "branches": len(row) * n,
        "new_tokens": new,
        "new_tokens_of_generate": new_generated,
        "seconds": seconds,
        "ratio": {name: value / seconds["branch"] for name, value in seconds.items()},
        "same_tokens": {name: float(rows.double().mean()) for name, rows in same.items()},
        "logp_difference": {
            name: float((drawn[name].logp - drawn["branch"].logp)[rows].abs().max())
            for name, rows in same.items()
            if rows.any()
        },
    }


def show(result: dict) -> None:
    table = Table(
        title=f"{result['branches']} branches, {result['new_tokens']:,} new tokens, CPU seconds of one thread"
    )
    for name in ("read anew for", "seconds", "× branch", "branches with the same tokens", "difference in logp"):
        table.add_column(name, justify="right")
    for name, seconds in result["seconds"].items():
        table.add_row(
            name,
            f"{seconds:.3f}",
            f"{result['ratio'][name]:.2f}",
            f"{result['same_tokens'][name]:.0%}" if name in result["same_tokens"] else "",
            f"{result['logp_difference'][name]:.0e}" if name in result["logp_difference"] else "",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
