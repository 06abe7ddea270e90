"""benchmarks/README.md, and what docs/training.md says of results, from the results of the last runs: `python
benchmarks/summary.py`."""

import json
from pathlib import Path

import training_report
from elsewhere_report import audited, in_trl, in_verl
from tables import table, within

HERE = Path(__file__).parent
HEAD = """# Benchmarks

<!-- Written by `python benchmarks/summary.py` from benchmarks/results/*.json; run `make bench` for figures of your own machine. -->

Each comparison was made in one run on one machine; ratios travel, absolute figures do not. What estimators make of a token of sampling:
[variance.md](variance.md).
"""


def main() -> None:
    sections = [HEAD, tree_dp(load("tree_dp")), sampled_rate(load("sampled_rate")), env_rate(load("env_rate"))]
    sections += [
        sandbox_rate(load("sandbox_rate")),
        sb3(load("sb3")),
        branching(load("branching")),
        engines(load("engines")),
    ]
    sections += [
        peers(load("peers")),
        learning(load("learning")),
        trepo_cost(load("trepo_cost")),
        turns(load("turns")),
        kills(load("kills")),
        elsewhere(),
    ]
    (HERE / "README.md").write_text("\n".join(sections), encoding="utf-8")
    page = training_report.write(load)
    print(f"Written to {HERE / 'README.md'} and {page}")


def load(name: str) -> dict:
    return json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))


def section(title: str, command: str, words: str, header: list[str], rows: list[list[str]], result: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"## {title}\n",
        f"`{command}` (commit {result['commit'][:7]}; {versions}; {result['cores']} cores)\n",
        f"{words}\n",
    ]
    return "\n".join([*lines, table(header, rows), ""])


def tree_dp(result: dict) -> str:
    rows = [
        [
            f"V = {r['vocab_size']}, T = {r['horizon']}: {r['leaves']:,} leaves",
            f"{r['tree_gradient_ms']:.3g} ms",
            f"{r['per_copy_new']:.2g} x",
            f"{r['per_copy']:.2g} x",
            f"{r['autograd_per_tree_gradient']:.2g} x",
            f"{r['peak_memory_per_input']:.2g} x",
        ]
        for r in result["tree"]
    ]
    chain = result["ngram"]
    words = (
        "Exact gradient by dynamic programming on the tree, one thread, CPU time. A copy of the logits into new memory "
        "(the gradient is "
        "new memory too) or into memory that was there; autograd is a plain level-by-level product; memory is the peak "
        "over parameters "
        f"plus rewards. The n-gram engine takes {chain['ngram_gradient_ms']:.0f} ms at V = {chain['vocab_size']}, T = "
        f"{chain['horizon']:,}."
    )
    header = ["tree", "gradient", "of a copy (new)", "of a copy (old)", "autograd takes", "memory"]
    return section("Exact gradients", "python benchmarks/tree_dp.py", words, header, rows, result)


def sampled_rate(result: dict) -> str:
    rows = [
        [
            f"{r['name']}, {'no end token' if run['eos'] is None else 'end token'}",
            f"{r['responses']:,}",
            f"{r['responses_per_second'] / 1e6:.3g} M/s",
            f"{r['per_numpy_loop']:.2f} x",
        ]
        for run in result["runs"]
        for r in run["rows"]
    ]
    first = result["runs"][0]
    words = (
        f"Responses a CPU second of sampled certificates at V = {first['vocab_size']}, T = {first['horizon']}, one "
        f"thread, beside a "
        "hand-vectorised numpy REINFORCE loop on the same MDP. Estimators of one response are drawn as multinomial "
        "counts."
    )
    header = ["estimator", "responses", "rate", "of the loop's"]
    return section("Sampled certificates", "python benchmarks/sampled_rate.py", words, header, rows, result)


def sandbox_rate(result: dict) -> str:
    rows = [
        [r["backend"], f"{r['programs_per_second']:.0f}", f"{r['program_cpu_ms']:.1f} ms"] for r in result["backends"]
    ]
    words = f"HumanEval programs a second, {result['workers']} workers, warm."
    return section(
        "Sandbox",
        "python benchmarks/sandbox_rate.py",
        words,
        ["backend", "programs a second", "CPU a program"],
        rows,
        result,
    )


def env_rate(result: dict) -> str:
    rows = [
        [
            r["task"],
            f"{r['environment_steps_per_second'] / 1e6:.3g} M/s",
            f"{r['faster_than_cartpole']:.2f} x",
            f"{r['slower_than_bare']:.2f} x",
        ]
        for r in result["rates"]
    ]
    words = (
        f"Steps a second of {result['num_envs']:,} environments in one array, beside Gymnasium's own vectorised "
        f"CartPole and a bare "
        "hand-written loop that does the same observable work."
    )
    header = ["task", "steps", "CartPole's rate", "the bare loop's time"]
    return section("Environments", "python benchmarks/env_rate.py", words, header, rows, result)


def sb3(result: dict) -> str:
    rows = [
        [
            f"{r['algorithm']} on {r['id']}",
            f"{r['timesteps']:,}",
            f"{r['seconds']:.0f} s",
            f"{r['before']:.3f}",
            f"{r['drawn']:.3f}",
            f"{r['greedy']:.3f}",
            f"{r['optimum']:.3f}",
        ]
        for r in result["runs"]
    ]
    words = "Stable-Baselines3 through the wrappers, against the exact optimum."
    header = ["agent", "steps", "time", "before", "drawn", "greedy", "optimum"]
    return section("Stable-Baselines3", "python benchmarks/sb3.py", words, header, rows, result)


def branching(result: dict) -> str:
    options = result["options"]
    rows = [[name, f"{seconds:.2f} s", f"{result['ratio'][name]:.1f} x"] for name, seconds in result["seconds"].items()]
    words = (
        f"{options['branches']} branches of about {options['tokens']} tokens from each of {options['cuts']} places in "
        f"{options['responses']} "
        f"responses, prompt and response {options['prompt'] + options['response']} tokens long, tiny Llama, one "
        f"thread, CPU time. `branch` "
        "reads each response once; then our own sampling, which reads each prefix once; Hugging Face's `generate`; no "
        "cache at all."
    )
    return section("Branches", "python benchmarks/branching.py", words, ["way", "time", "of `branch`"], rows, result)


def peers(result: dict) -> str:
    names = {
        "our_grpo": "**ours, GRPO**",
        "our_rloo": "**ours, RLOO**",
        "straight_loop": "straight loop",
        "trl_grpo": "TRL GRPO, no checkpointing",
        "trl_grpo_checkpointed": "TRL GRPO as it comes",
        "trl_rloo": "TRL RLOO",
    }
    rows = []
    for setting in result["settings"]:
        by_name = {row["contender"]: row for row in setting["rows"]}
        ours = by_name["our_grpo"]
        for name, words in names.items():
            if name not in by_name:
                continue
            row = by_name[name]
            rows.append(
                [
                    f"{words}, prompts of {setting['prompt_length']}",
                    f"{row['cpu_seconds']:.2f} s",
                    f"{ours['cpu_seconds'] / row['cpu_seconds']:.2f} x",
                    f"{row['tokens_per_cpu_second']:,.0f}",
                    f"{row['added_memory'] / 2**20:,.0f} MiB",
                    f"{ours['added_memory'] / row['added_memory']:.2f} x",
                ]
            )
    words = (
        f"One training step on the same tiny Llama ({result['parameters'] / 1e6:.2f} M parameters, float32): "
        f"{result['prompts']} prompts x "
        f"{result['group_size']} responses x {result['new_tokens']} tokens, AdamW, one thread, CPU time, each "
        f"contender in processes of its "
        "own. Memory is the peak less what the process had before the first step. TRL checkpoints activations unless "
        "told not to."
    )
    header = ["contender", "a step", "ours over it", "tokens a CPU-second", "added memory", "ours over it"]
    return section("Beside TRL", "python benchmarks/peers/compare.py", words, header, rows, result)


def learning(result: dict) -> str:
    by_agent: dict[tuple[str, str], list[dict]] = {}
    for run in result["runs"]:
        if "table" not in run:  # the others are docs/adversarial.md's
            by_agent.setdefault((run["agent"], run["reward"]), []).append(run)
    rows = []
    for (agent, reward), runs in by_agent.items():
        ends = [run["curve"][-1] for run in runs]
        tokens = sum(end["tokens"] for end in ends) / len(ends)
        figures = [
            f"{min(end[key] for end in ends):.3f} … {max(end[key] for end in ends):.3f}" for key in ("sum", "outcome")
        ]
        rows.append([f"{agent}, reward {reward}", str(len(runs)), f"{tokens:,.0f}", *figures])
    words = (
        f"A small transformer from scratch, warm-started, then {result['updates']} updates at "
        f"{result['tokens_per_update']:,} generated tokens each; "
        "shares of right digits and of right sums at the end, smallest and largest over seeds. `docs/figures/` shows "
        "the curves."
    )
    header = ["agent", "seeds", "tokens", "right digits", "right sums"]
    return section("Learning", "python benchmarks/learning.py rewards agents preferences", words, header, rows, result)


def trepo_cost(result: dict) -> str:
    words_of = {
        "grpo": "GRPO",
        "ppo": "PPO, the same responses",
        "trepo-responses": "TRePO, the same responses",
        "trepo-tokens": "TRePO, the same tokens",
        "trepo-every": "TRePO, every token",
    }
    by_name = {row["contender"]: row for row in result["rows"]}
    rows = [
        [
            words,
            within([bound / 2**20 for bound in by_name[name]["added_memory"]], ".0f", " MiB"),
            within(by_name[name]["cpu_seconds"], ".2f", " s"),
            f"{by_name[name]['tokens']:,}",
            f"{by_name[name]['rewards']:,}",
            f"{by_name[name]['models']}",
            f"{by_name[name]['state'] / 2**20:.0f} MiB",
        ]
        for name, words in words_of.items()
    ]
    memory = {name: by_name[name]["added_memory"] for name in words_of}
    same = memory["grpo"][1] <= memory["trepo-responses"][2] and memory["trepo-responses"][1] <= memory["grpo"][2]
    more = memory["trepo-every"][1] > memory["grpo"][2]
    words = (
        f"The paper: “{result['paper']}” (abstract). A training step on one small language model "
        f"({by_name['grpo']['parameters'] / 1e6:.1f} M parameters, float32), {result['prompts']} prompts, responses of "
        f"{result['response']} tokens, one thread; memory is the peak less what the process had before the first step, "
        f"means and 95 % intervals over {result['rounds']} processes. At the same responses, the memory of TRePO "
        f"{'cannot be told from' if same else 'differs from'} that of GRPO; it draws "
        f"{by_name['trepo-responses']['tokens'] / by_name['grpo']['tokens']:.1f} times the tokens. PPO trains a second "
        f"model, the critic."
        + (" With branches from every token, all at once, TRePO takes more memory than GRPO." if more else "")
    )
    header = ["contender", "peak memory", "a step", "tokens drawn", "rewards", "models", "of them state"]
    return section("The cost of TRePO", "python benchmarks/trepo_cost.py", words, header, rows, result)


def turns(result: dict) -> str:
    rows = [
        [
            str(row["turns"]),
            *(within(row["noise"][name], ".3g") for name in ("rloo", "trepo", "trepo-exact")),
            f"{row['tokens']['rloo']:.0f}",
            f"{row['tokens']['trepo']:.0f}",
            *(within(row["tokens_to_signal"][name], ".3g") for name in ("rloo", "trepo")),
        ]
        for row in result["rows"]
        if row["reward"] == "at the end"
    ]
    last = [row for row in result["rows"] if row["reward"] == "at the end"][-1]
    words = (
        f"The paper: “{result['paper']}” (Section 5.1). Conversations with one reward at the end, one token a turn and "
        "a random reply; noise is tr Cov of one response's share, tokens to signal are noise × tokens / |∇J|². Every "
        "figure is exact; means are geometric over "
        f"{result['options']['instances']} random conversations, with 95 % intervals. From 2 turns to {last['turns']} "
        f"the noise of RLOO (K = 4) is multiplied by {within(last['growth']['rloo'], '.2f')}, that of TRePO with exact "
        f"values by {within(last['growth']['trepo-exact'], '.2f')}, with 4 fresh draws before every turn by "
        f"{within(last['growth']['trepo'], '.2f')}. These draws are tokens, too: at {last['turns']} turns TRePO needs "
        f"{within(last['trepo_over_rloo']['tokens_to_signal'], '.2f')} times the tokens of RLOO for the same signal."
    )
    header = ["turns", "RLOO, noise", "TRePO, 4 draws", "exact values", "RLOO, tokens", "TRePO, tokens"]
    header += ["RLOO, tokens to signal", "TRePO, tokens to signal"]
    table = section("Turns of a conversation", "python benchmarks/turns.py", words, header, rows, result)
    return f"{table}\n![Noise and tokens to signal against the turns of a conversation](../docs/figures/turns.svg)\n"


def kills(result: dict) -> str:
    disturbed = result["kills"] | result["stops"]
    rows = [
        [
            name,
            str(each["total"]),
            str(each["runs"]),
            str(sum(each["not equal"].values())),
            str(len(each["other ends"])),
        ]
        for name, each in disturbed.items()
    ]
    damage, answers = result["damage"], result["damage"]["answers"]
    words = (
        "Runs that were killed or stopped at random moments and resumed until they were finished, beside undisturbed "
        "ones: weights, metrics (but for seconds) and samples are equal bit for bit, or counted as not equal. Of "
        f"{damage['cases']} ways to damage the files of a run, {answers.get('equal weights', 0)} led to the same weights, "
        f"{answers.get('refused', 0)} were refused in a sentence, and {len(damage['wrong'])} went wrong."
    )
    header = ["run: signal", "signals", "finished runs", "not equal", "other ends"]
    return section("Kills", "python benchmarks/kills.py", words, header, rows, result)


def elsewhere() -> str:
    """What is known of other libraries."""
    trl, verl = load("bridge_trl"), load("bridge_verl")
    return "\n".join(
        [
            section("Estimators of ours in TRL", "python benchmarks/bridge_trl.py", *in_trl(trl), trl),
            section("Estimators of ours in verl", "python benchmarks/bridge_verl.py", *in_verl(verl), verl),
            audit(load("audit")),
        ]
    )


def audit(result: dict) -> str:
    """It is exact, so that the machine does not matter."""
    words, header, rows = audited(result)
    made = f"`make audit`, which calls `{result['command']}` (python {result['python']}, torch {result['torch']})"
    return "\n".join(["## Other libraries' gradients\n", f"{made}\n", f"{words}\n", table(header, rows), ""])


def engines(result: dict) -> str:
    options = result["options"]
    rows = [
        [
            name,
            f"{each['tokens_per_second']:.0f}",
            f"{each['update_seconds']:.2f} s",
            f"{each['logp_difference_max']:.1g}",
        ]
        for name, each in result["engines"].items()
    ]
    words = (
        f"SmolLM2-135M-Instruct, {options['prompts']} prompts of {options['prompt']} tokens, {options['tokens']} new "
        f"ones, {options['dtype']}: speed of "
        "drawing, time to take over new weights, and the largest difference of a log-probability from the policy's own."
    )
    return section(
        "Engines",
        "python benchmarks/engines.py FOLDER",
        words,
        ["engine", "tokens a second", "new weights", "logp"],
        rows,
        result,
    )


if __name__ == "__main__":
    main()
