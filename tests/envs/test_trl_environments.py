"""Our conversations as TRL's environments: called as its GRPOTrainer calls them, and by it where it is installed."""

import importlib.util
import inspect
import json
import re

import numpy as np
import pytest
from transformers.utils.chat_template_utils import get_json_schema

from llm_mdp_envs.adapters.trl_environments import OVER, trl_environment, trl_environment_rows
from llm_mdp_envs.episode import replay
from llm_mdp_envs.tasks.calculator import Calculator
from llm_mdp_envs.tasks.documents import Documents
from llm_mdp_envs.tasks.guess_number_text import GuessNumberText


def methods(environment: object) -> dict[str, object]:
    """The tools that TRL finds: public functions of the class, bound."""
    return {
        name: getattr(environment, name)
        for name, _ in inspect.getmembers(type(environment), predicate=inspect.isfunction)
        if name not in ("reset", "get_reward") and not name.startswith("_")
    }


def test_a_conversation_is_spoken_by_a_tool():
    task = GuessNumberText(highest=8)
    (row,) = trl_environment_rows(task, 1)
    environment = trl_environment(task)()
    assert "`say`" in environment.reset(**row)
    number, tools = task.question(np.random.default_rng(row["question_seed"])).secret.secret, methods(environment)
    assert list(tools) == ["say"] and row["prompt"][-1]["role"] == "user" and "1 to 8" in row["prompt"][-1]["content"]
    told = environment.say(str(number % 8 + 1))
    assert told.startswith("My number is") and environment.get_reward() == 0
    assert environment.say(str(number)) == OVER and environment.get_reward() == pytest.approx(0.9)
    assert environment.say(str(number)) == OVER and environment.get_reward() == pytest.approx(0.9)
    environment.reset(**row)
    assert environment.get_reward() == 0


def test_the_turn_limit_holds():
    task = GuessNumberText(max_turns=2)
    environment = trl_environment(task)()
    environment.reset(**trl_environment_rows(task, 1)[0])
    assert [environment.say("hm") == OVER for _ in range(3)] == [False, False, True]
    assert environment.get_reward() == pytest.approx(-0.1)


@pytest.mark.parametrize("task", [Calculator(), Documents()])
def test_tools_are_methods_with_their_descriptions(task):
    environment = trl_environment(task)()
    tools, secret = methods(environment), task.question(np.random.default_rng(0)).secret.secret
    own = {function.__name__: get_json_schema(function)["function"] for function in task.tools(secret)}
    assert {*tools} == {*own, "answer"}
    for name, schema in own.items():
        assert get_json_schema(tools[name])["function"] == schema
    assert get_json_schema(tools["answer"])["function"]["parameters"]["required"] == ["text"]


def test_rewards_are_those_of_the_task():
    task = Calculator()
    for row in trl_environment_rows(task, 5, seed=3):
        question = task.question(np.random.default_rng(row["question_seed"]))
        environment = trl_environment(task)()
        environment.reset(**row)
        result = environment.calculate(question.secret.secret)
        assert environment.calculate(expression="1 / 0").startswith("Error: this divides by zero")
        environment.answer(result)
        said = [task.call_text("calculate", expression=text) for text in (question.secret.secret, "1 / 0")]
        tokens, _ = task.converse(question, [*said, result])
        assert environment.get_reward() == pytest.approx(float(replay(task, [question], tokens[None]).reward[0]))


def test_rows_are_needed():
    with pytest.raises(ValueError, match='needs the column "question_seed"'):
        trl_environment(Calculator())().reset(prompt="x")


def test_a_tool_of_a_taken_name():
    class Named(Calculator):
        def tools(self, secret):
            def answer(text: str) -> str:
                """Answer.

                Args:
                    text: any.
                """
                return text

            return [answer]

    with pytest.raises(ValueError, match="a tool of Named has the name 'answer'"):
        trl_environment(Named())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is missing: pip install trl==1.16.0")
def test_trl_plays_and_trains_on_it(tmp_path):
    """A tiny model under TRL's own trainer; what it says is written for it, so that tools are called: half of the
    policies copy the result into their answer, half say something else."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    task, tokenizer = Calculator(), trl_tokenizer()

    def call(name: str, **arguments: str) -> list[int]:
        text = f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
        return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]

    class Scripted(GRPOTrainer):
        def _generate_single_turn(self, prompt_ids, *others, **options):
            said = []
            for number, ids in enumerate(prompt_ids):
                text = tokenizer.decode(ids)
                question, results = re.search(r"What is (.*)\?", text), re.findall(r"<tool_response>\n(\S+)\n<", text)
                assert question is not None
                if not results:
                    said.append(call("calculate", expression=question[1]))
                elif "conversation is over" not in text:
                    said.append(call("answer", text=results[0] if number % 2 else "nothing"))
                else:
                    said.append(tokenizer.encode("Done.<|im_end|>", add_special_tokens=False))
            return said, None

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=4096, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    arguments = GRPOConfig(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, num_generations=2, max_completion_length=600,
        report_to=[], use_cpu=True, logging_steps=1, save_strategy="no",
    )  # fmt: skip
    trainer = Scripted(
        LlamaForCausalLM(config), args=arguments, processing_class=tokenizer,
        train_dataset=Dataset.from_list(trl_environment_rows(task, 4)), environment_factory=trl_environment(task),
    )  # fmt: skip
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert rewards == [pytest.approx(0.6)] * 2


def trl_tokenizer():
    """The byte tokenizer with the template of Qwen2.5 that comes with TRL, by which it knows how calls look."""
    from pathlib import Path

    import trl

    from tests.envs.chat_templates import QWEN, tokenizer_with

    tokenizer = tokenizer_with(QWEN)
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates/qwen2_5.jinja").read_text(encoding="utf-8")
    return tokenizer
