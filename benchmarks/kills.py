"""What is left of a run that was killed, stopped, started twice or damaged: `python benchmarks/kills.py`, about half
an hour on two busy cores; results/kills.json.

Undisturbed runs of three kinds (RLOO on a table; PPO with a critic; RLOO on a small language model in bfloat16 with
LoRA adapters) are compared with runs that were disturbed and resumed until they were finished: weights, metrics (but
for seconds) and samples must be equal bit for bit.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from machine import write_results

RESULTS = Path(__file__).parent / "results" / "kills.json"
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["llm_mdp_agents.training.run", "transformers.models.llama.modeling_llama", "peft"])
TIMING = ("seconds", "tokens_per_second")
SHORT = {"prompts_per_step": 4, "eval_prompts": 8, "eval_every": 3, "signal_every": 0, "progress": False}
PATIENCE = 900.0
"""Seconds that a process may take before it counts as hung."""


def language_model(folder: Path) -> None:
    """A small Llama with random weights that reads bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llm_mdp_envs.text import byte_tokenizer

    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)


def kinds(model: Path) -> dict[str, tuple[tuple, dict[str, Any]]]:
    """Arguments of `train`, by what is trained."""
    from llm_mdp_agents.resolve import ModelConfig
    from llm_mdp_agents.zoo.ppo import PPOConfig
    from llm_mdp_agents.zoo.rloo import RLOOConfig

    adapters = ModelConfig(str(model), lora_rank=4, dtype="bfloat16")
    words = {"dataset": "chain_sum", "horizon": 6, "chat": False}
    return {
        "rloo, a table": (("rloo", "Tabular"), {"steps": 40, "checkpoint_every": 3}),
        "ppo, a critic": ((PPOConfig(critic_warm_up=2, group_size=4), "Tabular"), {"steps": 16, "checkpoint_every": 3}),
        "rloo, LoRA, bfloat16": (
            (RLOOConfig(group_size=4), "ReasoningGym", adapters),
            {"steps": 10, "checkpoint_every": 2, "env_arguments": words, "prompts_per_step": 2},
        ),
    }


# --- processes --------------------------------------------------------------------------------------------------------


def begin(arguments: tuple, options: dict[str, Any], folder: Path, said: Any = None) -> None:
    """`train`, in a process of its own."""
    from llm_mdp_agents import train

    _say(said, lambda: train(*arguments, folder=folder, **SHORT | options))


def go_on(folder: Path, steps: int | None = None, said: Any = None) -> None:
    """`resume`, in a process of its own."""
    from llm_mdp_agents import resume

    _say(said, lambda: resume(folder, progress=False, steps=steps))


def _say(said: Any, job: Callable[[], Any]) -> None:
    """What came of a job, as the command line would say it: done, a sentence, or a traceback."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # a gap in damaged metrics is said in one
    try:
        job()
        answer = ("done", "")
    except KeyboardInterrupt as error:
        answer = ("stopped", str(error))
    except (ValueError, OSError, ImportError) as error:
        answer = ("refused", str(error)) if "\n" not in str(error).strip() else ("traceback", str(error))
    except BaseException as error:
        answer = ("traceback", f"{type(error).__name__}: {error}")
    if said is not None:
        said.send(answer)


def start(function: Callable, *args: Any) -> tuple[Any, Any]:
    """The process, and where its answer comes."""
    here, there = PROCESSES.Pipe()
    process = PROCESSES.Process(target=function, args=args, kwargs={"said": there})
    process.start()
    there.close()
    return process, here


def answer_of(process: Any, here: Any) -> tuple[str, str]:
    """What a process said at its end."""
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()
        return "hung", ""
    try:
        return here.recv()
    except EOFError:
        return "killed", ""


# --- kills ------------------------------------------------------------------------------------------------------------


def moments(folder: Path, draws: random.Random, seconds: float) -> dict[str, Callable[[], bool]]:
    """When to kill, as questions that are asked again and again."""
    begun, wait = time.monotonic(), draws.uniform(0, seconds)
    metrics, size = folder / "metrics.jsonl", [0]
    after = draws.randint(1, 12)

    def grown() -> bool:
        now = metrics.stat().st_size if metrics.exists() else 0
        size[0], grew = now, now != size[0]
        return grew and metrics.read_bytes().count(b"\n") % after == 0

    return {
        "at any time": lambda: time.monotonic() - begun > wait,
        "while a checkpoint is written": lambda: draws.random() < 0.2 and any(folder.glob("checkpoints/.step-*")),
        "as metrics are appended": grown,
        "while model and report are written": lambda: (folder / "model").exists() or any(folder.glob(".report*")),
    }


def kill(process: Any, when: Callable[[], bool], number: int) -> bool:
    """Send a signal in this moment; False: the process ended before."""
    deadline = time.monotonic() + PATIENCE
    while process.is_alive() and time.monotonic() < deadline:
        if when():
            os.kill(process.pid, number)
            return True
        time.sleep(0.0003)
    return False


def differences(folder: Path, whole: Path) -> list[str]:
    """What is not equal bit for bit in two runs."""
    from llm_mdp_agents.training import checkpoint
    from llm_mdp_agents.training.records import load_metrics, load_samples

    found = []
    left, right = (
        [{key: value for key, value in line.items() if key not in TIMING} for line in load_metrics(each)]
        for each in (folder, whole)
    )
    if left != right:
        found.append("metrics")
    if [line["step"] for line in left] != list(range(len(right))):
        found.append("lines lost or doubled")
    if load_samples(folder) != load_samples(whole):
        found.append("samples")
    if weights(folder) != weights(whole):
        found.append("weights")
    here, there = (checkpoint.load(each / "checkpoints") for each in (folder, whole))
    if here.tensors.keys() != there.tensors.keys() or any(
        not here.tensors[name].equal(there.tensors[name]) for name in here.tensors
    ):
        found.append("checkpoint")
    return found


def weights(folder: Path) -> dict[str, bytes]:
    """The trained model's files."""
    return {path.name: path.read_bytes() for path in sorted((folder / "model").glob("*.safetensors"))}


def disturbed(
    choices: tuple[tuple, dict[str, Any]],
    whole: Path,
    root: Path,
    draws: random.Random,
    signals: int,
    number: int,
    seconds: float,
) -> dict[str, Any]:
    """Runs that got so many signals in all, each of them resumed until it was finished."""
    hit, anew, found, runs, wrong = Counter(), 0, [], 0, []
    while hit.total() < signals:
        folder, runs = root / f"run-{runs}", runs + 1
        process, here = start(begin, *choices, folder)
        left = 4
        while True:
            name, when = draws.choice(list(moments(folder, draws, seconds).items()))
            struck = left > 0 and hit.total() < signals and kill(process, when, number)
            hit[name] += struck
            left -= 1
            answer, words = answer_of(process, here)
            if answer == "done":
                break
            if answer not in ("killed", "stopped"):
                if "start it anew" not in words:
                    wrong.append(f"{answer}: {words}")
                    break
                anew += 1
                shutil.rmtree(folder)
            process, here = start(go_on, folder) if folder.exists() else start(begin, *choices, folder)
        found += differences(folder, whole) if answer == "done" else []
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "signals": dict(hit), "total": hit.total(), "runs": runs, "begun anew for want of a checkpoint": anew,
        "not equal": dict(Counter(found)), "other ends": wrong,
    }  # fmt: skip


# --- two processes ----------------------------------------------------------------------------------------------------


def two_processes(choices: tuple[tuple, dict[str, Any]], whole: Path, root: Path) -> dict[str, Any]:
    """A live run that is resumed, and two resumes of a killed one at once."""
    folder = root / "twice"
    process, here = start(begin, choices[0], choices[1], folder)
    kill(process, lambda: (folder / "checkpoints" / "step-000003").exists(), signal.SIGSTOP)
    second = answer_of(*start(go_on, folder))
    process.kill()
    answer_of(process, here)
    pair = [start(go_on, folder) for _ in range(2)]
    ends = sorted(answer_of(*each)[0] for each in pair)
    return {
        "a live run that is resumed": {"answer": second[0], "words": second[1].replace(str(root), "…")},
        "two resumes at once": ends, "not equal": differences(folder, whole),
    }  # fmt: skip


# --- damage -----------------------------------------------------------------------------------------------------------


def damages(draws: random.Random) -> dict[str, Callable[[Path], None]]:
    """What can befall a file."""

    def cut(path: Path) -> None:
        os.truncate(path, draws.randrange(max(path.stat().st_size, 1)))

    def digit(path: Path) -> None:
        content = bytearray(path.read_bytes())
        places = [place for place, each in enumerate(content) if chr(each).isdigit() and each < 128]
        if places:
            place = draws.choice(places)
            content[place] = draws.choice([each for each in b"0123456789" if each != content[place]])
            path.write_bytes(content)

    def byte(path: Path) -> None:
        content = bytearray(path.read_bytes())
        if content:
            content[draws.randrange(len(content))] ^= draws.randint(1, 255)
            path.write_bytes(content)

    def by_folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    def emptied(path: Path) -> None:
        path.write_bytes(b"")

    def by_object(path: Path) -> None:
        path.write_text("{}")

    return {
        "cut": cut, "emptied": emptied, "one digit changed": digit, "one byte changed": byte, "deleted": Path.unlink,
        "replaced by a folder": by_folder, "replaced by {}": by_object,
    }  # fmt: skip


def cases(finished: Path, others: dict[str, Path], draws: random.Random, more: int) -> Iterator[tuple[str, str, Any]]:
    """File, damage, and what does it to the folder of a run; cuts and changes at so many random places."""
    files = sorted(str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file())
    files = [each for each in files if not each.startswith("tensorboard")]
    for file in files:
        for name, damage in damages(draws).items():
            matters = file.startswith(("checkpoints", "config", "metrics", "samples"))
            for _ in range(more if matters and name in ("cut", "one digit changed", "one byte changed") else 1):
                yield file, name, lambda folder, damage=damage, file=file: damage(folder / file)
    newest = sorted((finished / "checkpoints").iterdir())[-1].name

    def foreign(source: Path) -> Callable[[Path], None]:
        def put(folder: Path) -> None:
            shutil.rmtree(folder / "checkpoints" / newest)
            shutil.copytree(source / "checkpoints" / newest, folder / "checkpoints" / newest)

        return put

    for name, source in others.items():
        yield f"checkpoints/{newest}", f"put there from {name}", foreign(source)
    yield f"checkpoints/{newest}", "deleted", lambda folder: shutil.rmtree(folder / "checkpoints" / newest)
    yield "checkpoints", "deleted", lambda folder: shutil.rmtree(folder / "checkpoints")


def damaged(root: Path, draws: random.Random, more: int) -> dict[str, Any]:
    """Every case: refused in a sentence, or gone on with to the weights of a run that nothing befell."""
    options = {"checkpoint_every": 2, "keep": 2, "steps": 6}
    finished, whole = root / "finished", root / "whole"
    others = {
        "a run with another seed": (("rloo", "Tabular"), {"seed": 5}),
        "another environment": (("rloo", "Tabular"), {"env_arguments": {"horizon": 3}}),
        "another agent": (("reinforce", "Tabular"), {}),
        "a model of another shape": (("rloo", "Tabular", "ngram"), {}),
    }
    for folder, arguments, extra in [
        (finished, ("rloo", "Tabular"), {}),
        (whole, ("rloo", "Tabular"), {"steps": 8}),
        *((root / name.replace(" ", "-"), *each) for name, each in others.items()),
    ]:
        assert answer_of(*start(begin, arguments, options | extra, folder)) == ("done", ""), folder
    table, examples, wrong, offered = {}, {}, [], Counter()
    sources = {name: root / name.replace(" ", "-") for name in others}
    for number, (file, name, damage) in enumerate(cases(finished, sources, draws, more)):
        folder = root / "case" / f"{number}"
        shutil.copytree(finished, folder)
        damage(folder)
        answer, words = answer_of(*start(go_on, folder, 8))
        if answer == "done":
            answer = "equal weights" if weights(folder) == weights(whole) else "OTHER WEIGHTS"
        elif answer == "refused" and "--resume" in words and "checkpoints/step-" in words:
            earlier = folder / "checkpoints" / words.rpartition("checkpoints/")[2].split(".")[0]
            again = answer_of(*start(go_on, earlier, 8))[0]
            offered["led to equal weights" if again == "done" and weights(folder) == weights(whole) else "failed"] += 1
        table.setdefault(f"{file}: {name}", Counter())[answer] += 1
        if answer in ("OTHER WEIGHTS", "traceback", "hung"):
            wrong.append(f"{file}, {name}: {answer} {words}")
        if answer == "refused":
            examples.setdefault(f"{file}: {name}", words.replace(str(folder), "RUN"))
        shutil.rmtree(folder)
    total = sum(table.values(), Counter())
    return {
        "cases": total.total(), "answers": dict(total), "the checkpoint offered instead": dict(offered),
        "wrong": wrong, "table": {name: dict(each) for name, each in table.items()}, "sentences": examples,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=16, help="of each kind of run")
    parser.add_argument("--stops", type=int, default=5, help="SIGINTs and SIGTERMs of each kind of run")
    parser.add_argument("--places", type=int, default=4, help="random places of each cut and change")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    draws, begun = random.Random(asked.seed), time.time()
    results: dict[str, Any] = {"command": "python benchmarks/kills.py", "kills": {}, "stops": {}}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        language_model(root / "model")
        for name, choices in kinds(root / "model").items():
            whole = root / f"whole {name}"
            started = time.monotonic()
            assert answer_of(*start(begin, *choices, whole)) == ("done", ""), name
            seconds = time.monotonic() - started
            for kind, number, total in (
                ("kills", signal.SIGKILL, asked.kills),
                ("stops", signal.SIGINT, asked.stops),
                ("stops", signal.SIGTERM, asked.stops),
            ):
                found = disturbed(choices, whole, root / "disturbed", draws, total, number, seconds)
                results[kind][f"{name}: {signal.Signals(number).name}"] = found
                print(name, signal.Signals(number).name, json.dumps(found), flush=True)
            if "two processes" not in results:
                results["two processes"] = two_processes(choices, whole, root)
                print(json.dumps(results["two processes"]), flush=True)
        results["damage"] = damaged(root, draws, asked.places)
        print(json.dumps({name: results["damage"][name] for name in ("cases", "answers", "wrong")}), flush=True)
    results["minutes"] = round((time.time() - begun) / 60, 1)
    write_results(asked.results, ("torch", "transformers", "peft", "safetensors"), results)


if __name__ == "__main__":
    main()
