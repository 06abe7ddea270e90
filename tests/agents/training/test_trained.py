"""The folder of a trained model is a model: for transformers, for peft, for our commands; and what its card says."""

import itertools
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from llm_mdp_agents import resume, train
from llm_mdp_agents.lm.loading import load_policy, save_model, small_transformer
from llm_mdp_agents.resolve import ModelConfig, build_policy, find_task
from llm_mdp_agents.training.model_card import certificate_in_words
from llm_mdp_agents.training.trained import load_policy_of_run
from llm_mdp_agents.zoo.remax import ReMaxAgent
from llm_mdp_envs.task import Scores
from llm_mdp_envs.text import TextTask
from llm_mdp_envs.tokenizers import byte_tokenizer

ENV = "llm_mdp/ReasoningGym-v0"
SHORT = {
    "prompts_per_step": 2, "eval_prompts": 2, "eval_every": 1, "signal_every": 0, "steps": 1, "progress": False,
    "learning_rate": 0.1, "env_arguments": {"horizon": 6, "prompt_length": 200},
}  # fmt: skip


def run_of(tmp_path, model, name="run", agent="remax", **options):
    return train(agent, ENV, model, folder=tmp_path / name, **SHORT | options)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny Llama from elsewhere, with its tokenizer, more rows than that has tokens, and two ends."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("base"), byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=None, eos_token_id=256, pad_token_id=257,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[256, 258], pad_token_id=257, do_sample=True, top_k=7, temperature=0.3, repetition_penalty=1.2
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def moved_far(trainer, figures):
    """In place of many steps."""
    with torch.no_grad():
        for parameter in trainer.policy.parameters():
            if parameter.requires_grad and figures["step"]:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))


def logits_of(model, ids) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits[..., : len(byte_tokenizer())]


@pytest.mark.parametrize(
    "options", [{}, {"lora_rank": 2}, {"lora_rank": 2, "merge": True, "lora_targets": "q_proj,v_proj"}]
)
def test_the_folder_is_a_model(options, base, tmp_path):
    done = run_of(tmp_path, ModelConfig(str(base), temperature=0.8, **options), on_step=moved_far)
    folder, alone = done.folder / "model", "lora_rank" in options and "merge" not in options
    weights = (
        {"adapter_config.json", "adapter_model.safetensors", "llm_mdp.json"}
        if alone
        else {"config.json", "model.safetensors"}
    )
    assert {path.name for path in folder.iterdir()} == weights | {
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "README.md",
        "reward.svg",
    }  # fmt: skip
    says = json.loads((folder / "generation_config.json").read_text())
    assert says["eos_token_id"] == [256, 258] and (says["temperature"], says["top_k"], says["top_p"]) == (0.8, 0, 1.0)
    assert says["do_sample"] and "repetition_penalty" not in says and says["pad_token_id"] == 257
    tokenizer, own = AutoTokenizer.from_pretrained(folder), byte_tokenizer()
    text = [{"role": "user", "content": "é  1+2\n"}]
    ids = tokenizer.apply_chat_template(text, return_tensors="pt", return_dict=True)["input_ids"]
    assert torch.equal(ids, own.apply_chat_template(text, return_tensors="pt", return_dict=True)["input_ids"])
    trained = logits_of(done.policy.model, ids)
    assert float((logits_of(AutoModelForCausalLM.from_pretrained(base), ids) - trained).abs().max()) > 0.01
    for loaded in (
        AutoModelForCausalLM.from_pretrained(folder),
        load_policy_of_run(done.folder, None, {}, ModelConfig(), 0)[0].model,
        build_policy(ModelConfig(str(folder)), find_task(ENV, {}, ModelConfig(str(folder))), 0).model,
    ):
        torch.testing.assert_close(logits_of(loaded, ids), trained, rtol=1e-4, atol=1e-4)
    again, task = load_policy_of_run(done.folder, None, {}, ModelConfig(), 0)
    assert again.temperature == 0.8 and set(task.ends) == {256, 258} and again.vocab_size == len(own)


def test_adapters_name_their_base_in_full_and_train_on(base, tmp_path, monkeypatch):
    monkeypatch.chdir(base.parent)
    done = run_of(tmp_path, ModelConfig(base.name, lora_rank=2))
    folder = done.folder / "model"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    monkeypatch.chdir(tmp_path)
    on = run_of(tmp_path, ModelConfig(str(folder)), name="on")
    trained = [name for name, each in on.policy.named_parameters() if each.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert (on.folder / "model" / "adapter_model.safetensors").exists()
    assert json.loads((on.folder / "model" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    with pytest.raises(ValueError, match="holds adapters already"):
        build_policy(ModelConfig(str(folder), lora_rank=2), on.task, 0)


def test_adapters_without_their_base_say_where_it_should_be(base, tmp_path):
    done = run_of(tmp_path, ModelConfig(str(base), lora_rank=2))
    file = done.folder / "model" / "adapter_config.json"
    file.write_text(file.read_text().replace(str(base), str(tmp_path / "gone")))
    with pytest.raises(
        ValueError, match=f"holds adapters of the model {tmp_path}/gone, which is not there; put it back"
    ):
        load_policy_of_run(done.folder, None, {}, ModelConfig(), 0)


def test_adapters_on_random_weights_are_merged_for_there_is_no_base_to_name(base, tmp_path):
    done = run_of(tmp_path, ModelConfig(str(base / "config.json"), lora_rank=2))
    assert (done.folder / "model" / "model.safetensors").exists()
    assert not (done.folder / "model" / "adapter_config.json").exists()


def test_adapters_stay_in_float32_on_16_bits(base, tmp_path):
    # From 64 tokens on torch's sdpa in bfloat16 fails under ATEN_CPU_CAPABILITY=default, where the processor has more.
    done = run_of(tmp_path, ModelConfig(str(base), lora_rank=2, dtype="bfloat16", attention="eager"))
    again = load_policy_of_run(done.folder, None, {}, ModelConfig(), 0)[0]
    mine, theirs = done.policy.state_dict(), again.state_dict()
    assert {each.dtype for name, each in theirs.items() if "lora_" in name} == {torch.float32}
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.slow
def test_a_resumed_run_refuses_another_base_and_says_only_that(base, tmp_path):
    import shutil

    moved = tmp_path / "base"
    shutil.copytree(base, moved)
    done = run_of(tmp_path, ModelConfig(str(moved), lora_rank=2))
    size = (done.folder / "checkpoints" / "step-000001" / "tensors.safetensors").stat().st_size
    model = AutoModelForCausalLM.from_pretrained(moved)
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-3
    model.save_pretrained(moved)
    with pytest.raises(ValueError, match="the frozen weights of the policy are not those") as refused:
        resume(done.folder, steps=2, progress=False)
    assert "--resume" not in str(refused.value)
    shutil.rmtree(moved)
    shutil.copytree(base, moved)
    assert resume(done.folder, steps=2, progress=False).metrics[-1]["step"] == 2
    assert size < (base / "model.safetensors").stat().st_size + 100_000


def test_the_card_says_what_was_computed(tmp_path):
    done = run_of(tmp_path, ModelConfig("small", width=16, layers=1, heads=2), steps=2, epochs=2)
    card = (done.folder / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "agent `remax`" in card and f"`{ENV}`" in card
    first, last = done.metrics[0], done.metrics[-1]
    assert f"{first['eval/reward']:.3f} before training, {last['eval/reward']:.3f} after 2 steps" in card
    assert f"| 2 | {last['eval/reward']:.3f} | {last['eval/reward_low']:.3f} … {last['eval/reward_high']:.3f} |" in card
    assert "is **unbiased**" in card and "V" not in certificate_in_words(done.agent).split()[0]
    assert "each batch had 2, and from the second on the clipped surrogate is biased" in card
    assert "`horizon=6`" in card and "| train.epochs | `2` |" in card and f"torch {torch.__version__}" in card


def test_a_certificate_that_cannot_be_computed_is_not_claimed(tmp_path):
    class Broken(ReMaxAgent):
        name = "broken"

        def make_estimator(self):
            if self.task.vocab_size < 100:
                raise ValueError("not on so few tokens")
            return super().make_estimator()

    task = find_task(ENV, SHORT["env_arguments"])
    agent = Broken(ReMaxAgent.Config(), build_policy(ModelConfig("small"), task, 0), task)
    said = certificate_in_words(agent)
    assert said.startswith("Not computed:") and "not on so few tokens" in said and "biased" not in said


def test_a_task_without_words_has_a_model_without_a_tokenizer(tmp_path):
    done = train("remax", "Tabular", ModelConfig("small", width=16, layers=1, heads=2), folder=tmp_path / "run", **{
        **SHORT, "env_arguments": {},
    })  # fmt: skip
    names = {path.name for path in (done.folder / "model").iterdir()}
    assert names == {"config.json", "model.safetensors", "generation_config.json", "README.md", "reward.svg"}
    assert "It has no tokenizer" in (done.folder / "model" / "README.md").read_text()


@pytest.mark.slow
def test_what_stood_in_the_folder_is_replaced_whole(base, tmp_path):
    done = run_of(tmp_path, ModelConfig(str(base), lora_rank=2))
    (done.folder / "model" / "stale.safetensors").write_text("")
    resume(done.folder, steps=2, progress=False)
    assert not (done.folder / "model" / "stale.safetensors").exists()
    assert not [path for path in done.folder.iterdir() if path.name.startswith(".model")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"lora_rank": 2, "lora_targets": "q_prj"},
            "lora_targets has 'q_prj', and no layer of the model is called that; it",
        ),
        ({"attention": "nonsense"}, "attention is 'nonsense', which this model cannot have here"),
    ],
)
def test_layers_and_kernels_that_there_are_not_are_named(options, words, base):
    task = find_task(ENV, {}, ModelConfig(str(base)))
    with pytest.raises(ValueError, match=words):
        build_policy(ModelConfig(str(base), **options), task, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lora_targets": "q_proj"}, "lora_targets is q_proj, but lora_rank is 0: there are no adapters"),
        ({"lora_alpha": 8.0}, "lora_alpha is 8.0, but lora_rank is 0"),
        ({"lora_rank": 2, "lora_alpha": 0.0}, "lora_alpha is 0.0; it must be above 0"),
        ({"lora_rank": 2, "lora_targets": "q_proj,"}, "lora_targets is 'q_proj,'; give names of layers"),
    ],
)
def test_adapters_that_cannot_be_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ModelConfig("some/model", **options)


def test_the_attention_kernel_is_the_one_that_is_named(base):
    assert load_policy(base, attention="eager").causal_lm.config._attn_implementation == "eager"
    assert load_policy(base, attention="sdpa").causal_lm.config._attn_implementation == "sdpa"


def test_a_model_that_is_saved_without_a_task_keeps_its_ends(base, tmp_path):
    save_model(load_policy(base), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text())["eos_token_id"] == [256, 258]
    save_model(small_transformer(5, 8, width=16, layers=1), tmp_path / "small")
    assert json.loads((tmp_path / "small" / "generation_config.json").read_text())["bos_token_id"] == 5


# A curriculum


class Sums(TextTask):
    """Sums of numbers below `most`, which grows."""

    most = 2

    def __init__(self):
        super().__init__(horizon=3, prompt_length=10)

    def draw(self, generator):
        a, b = (int(each) for each in generator.integers(self.most // 2, self.most, size=2))
        return f"{a}+{b}=", str(a + b)

    def grade(self, replies):
        import numpy as np

        return Scores(np.array([float(reply.text == reply.secret) for reply in replies]))


def test_a_callback_sees_every_step_and_changes_what_is_asked_next(monkeypatch):
    task, seen, asked = Sums(), [], []
    draw = task.draw
    monkeypatch.setattr(task, "draw", lambda generator: asked.append(draw(generator)) or asked[-1])

    def harder(trainer, figures):
        seen.append((figures["step"], trainer.number, len(asked)))
        trainer.task.most = 2 + 10 * figures["step"]

    model = ModelConfig("small", width=16, layers=1, heads=2)
    done = train("remax", task, model, on_step=harder, **{**SHORT, "steps": 3, "warm_start": 0, "env_arguments": {}})
    assert [(step, number) for step, number, _ in seen] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert done.metrics[-1]["step"] == 3
    for (step, _, begin), (_, _, end) in itertools.pairwise(seen):
        numbers = [int(each) for question, _ in asked[begin:end] for each in question[:-1].split("+")]
        most = 2 + 10 * step
        assert numbers and all(most // 2 <= each < most for each in numbers)


def test_a_resumed_curriculum_is_told_where_it_stands(tmp_path):
    steps = []
    done = train("remax", "Tabular", folder=tmp_path / "run", **{**SHORT, "env_arguments": {}})
    resume(done.folder, steps=3, progress=False, on_step=lambda trainer, figures: steps.append(figures["step"]))
    assert steps == [1, 2, 3]
