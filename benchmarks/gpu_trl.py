"""TRL's GRPO on the batch of gpu_fast.py: generation of its own, the same prompts, lengths, parts, kernels and rate."""

import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from gpu_fast import Size, llama
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

if TYPE_CHECKING:
    from gpu import Bench


def make_peer(
    bench: "Bench", size: Size, prompts: list[list[int]], *, weights: str = "float32", defaults: bool = False
) -> Callable[[int], dict[str, Any]]:
    """A function that takes steps and gives medians of their seconds, after one step that is not timed.

    Args:
        weights: bfloat16: the model has them, and so have its gradients and moments; float32: bf16 by autocast.
        defaults: with TRL's own checkpointing of activations.
    """
    config = AutoConfig.for_model(**llama(size))
    torch.manual_seed(0)
    with torch.device(bench.device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, weights), attn_implementation="sdpa")
    model.generation_config.eos_token_id = None
    spent: dict[str, list[float]] = {"step": [], "draw": []}

    class Timed(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            result: list[Any] = []
            spent["draw"].append(
                bench.seconds(lambda: result.append(super(Timed, self)._generate_and_score_completions(inputs)))
            )
            return result[0]

    class Clock(TrainerCallback):
        start = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            bench.wait()
            self.start = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            bench.wait()
            spent["step"].append(time.perf_counter() - self.start)

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        if any(len(each) != size.response for each in completion_ids):
            raise RuntimeError(f"a response of TRL's is not {size.response} tokens long; the work must be the same.")
        return [sum(token < size.vocab // 2 for token in each) / len(each) for each in completion_ids]

    def take(steps: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            trainer = Timed(
                model=model,
                reward_funcs=reward,
                args=GRPOConfig(**arguments(bench, size, folder, steps + 1, weights, defaults)),
                train_dataset=Dataset.from_dict({"prompt": [" ".join(map(str, prompt)) for prompt in prompts]}),
                processing_class=tokenizer(size),
                callbacks=[Clock()],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        spent["update"] = [step - draw for step, draw in zip(spent["step"], spent["draw"], strict=True)]
        timed = {name: each[1:] for name, each in spent.items()}
        return {
            "seconds": {name: median(each) for name, each in timed.items()},
            "seconds_of_each": timed,
            "tokens_per_second": size.rows * size.response / median(timed["step"]),
        }

    return take


def arguments(bench: "Bench", size: Size, folder: str, steps: int, weights: str, defaults: bool) -> dict[str, Any]:
    """One update on one generated batch; everything that is not training switched off."""
    parts = size.rows // size.micro_batch
    # The older name is that of transformers before 5.20.
    names = ("activation_checkpointing", "gradient_checkpointing")
    off = next(name for name in names if name in GRPOConfig.__dataclass_fields__)
    own = {} if defaults else {off: False}
    return own | {
        "output_dir": folder, "max_steps": steps, "per_device_train_batch_size": size.micro_batch,
        "gradient_accumulation_steps": parts, "steps_per_generation": parts, "num_iterations": 1,
        "num_generations": size.group, "max_completion_length": size.response, "temperature": 1.0, "top_p": 1.0,
        "top_k": 0, "beta": 0.0, "optim": "adamw_torch_fused" if bench.on_cuda else "adamw_torch",
        "learning_rate": 1e-5, "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0,
        "bf16": weights == "float32", "use_cpu": not bench.on_cuda, "logging_strategy": "no", "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "seed": 0,
    }  # fmt: skip


def tokenizer(size: Size) -> PreTrainedTokenizerFast:
    """Every token is its number; the end token has an id that the model does not have, so that responses never end."""
    words = {str(token): token for token in range(size.vocab)} | {"<eos>": size.vocab}
    backend = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>", padding_side="left")
