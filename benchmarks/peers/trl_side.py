"""One contender of the peer's environment: `python trl_side.py CONTENDER SETTING` prints one line of JSON. Started by
compare.py."""

import sys
import tempfile

import torch
from datasets import Dataset
from setting import (
    BETAS,
    EOS,
    GROUP_SIZE,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    NEW_TOKENS,
    PROMPTS,
    SEED,
    SETTINGS,
    VOCAB_SIZE,
    Meter,
    build_model,
    build_prompts,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

CONTENDERS = {
    "trl_grpo": (GRPOTrainer, GRPOConfig, {}),
    "trl_grpo_checkpointed": (GRPOTrainer, GRPOConfig, {"activation_checkpointing": True}),
    "trl_rloo": (RLOOTrainer, RLOOConfig, {}),
}


def main() -> None:
    (trainer_class, config_class, options), setting = CONTENDERS[sys.argv[1]], SETTINGS[sys.argv[2]]
    torch.set_num_threads(1)
    model = build_model()
    meter = Meter(model)

    def reward(completion_ids: list[list[int]], **_: object) -> list[float]:
        return meter.responses(completion_ids)

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            model=model,
            reward_funcs=reward,
            args=config_class(**(common(folder, setting.steps + 1) | options)),
            train_dataset=Dataset.from_dict(
                {"prompt": [text(prompt) for prompt in build_prompts(setting.prompt_length).tolist()]}
            ),
            processing_class=tokenizer(),
            callbacks=[Measure(meter)],
        )
        trainer.train()
    print(meter.report("trl", "accelerate"))


def common(folder: str, steps: int) -> dict:
    """One optimiser step on one generated batch, everything that is not training switched off.

    TRL checkpoints activations by default, which runs every forward twice; off, a step does the work of the other
    contenders.
    """
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": PROMPTS * GROUP_SIZE,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 1,
        "num_iterations": 1,
        "num_generations": GROUP_SIZE,
        "max_completion_length": NEW_TOKENS,
        "temperature": 1.0,
        "beta": 0.0,
        "optim": "adamw_torch",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "weight_decay": 0.0,
        "max_grad_norm": MAX_GRAD_NORM,
        "activation_checkpointing": False,
        "use_cpu": True,
        "bf16": False,
        "seed": SEED,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


class Measure(TrainerCallback):
    def __init__(self, meter: Meter):
        self.meter = meter

    def on_train_begin(self, args, state, control, **kwargs):
        self.meter.start()

    def on_step_end(self, args, state, control, **kwargs):
        self.meter.step()


def tokenizer() -> PreTrainedTokenizerFast:
    """Every token is its number; the end token has an id that the model does not have."""
    words = {str(token): token for token in range(VOCAB_SIZE)} | {"<eos>": EOS}
    backend = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>", padding_side="left")


def text(prompt: list[int]) -> str:
    return " ".join(map(str, prompt))


if __name__ == "__main__":
    main()
