"""Guess the number and the consultation in words: the rules and rewards of the games they are faces of."""

import inspect
import pickle

import gymnasium as gym
import numpy as np
import pytest
from transformers import GPT2Config

from llm_mdp_agents.resolve import ModelConfig, find_task
from llm_mdp_envs import check_task
from llm_mdp_envs.episode import replay
from llm_mdp_envs.tasks.consultation import Consultation
from llm_mdp_envs.tasks.consultation_text import ConsultationText
from llm_mdp_envs.tasks.guess_number import GuessNumber
from llm_mdp_envs.tasks.guess_number_text import GuessNumberText
from llm_mdp_envs.turns import play
from tests.envs.chat_templates import SMOLLM2, tokenizer_with


@pytest.fixture(scope="module")
def guess() -> GuessNumberText:
    return GuessNumberText(tokenizer_with(SMOLLM2))


@pytest.fixture(scope="module")
def doctor() -> ConsultationText:
    return ConsultationText()


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("50", "50"),
        ("Is it 50?", "50"),
        ("My guess is **50**.", "50"),
        ("<think>between 1 and 100, so 50</think>50", "50"),
        ("50! Yes, 50.", "50"),
        ("My 2nd guess: 75", "75"),
        # as SmolLM2 wrote it, and was told "higher"
        ("I'll start by using your 10 guesses, so I can keep questioning you. Now I wonder.", ""),
        ("1,000", "1000"),
        ("007", "7"),
        ("50 or 51", ""),
        ("between 1-100", ""),
        ("-5", ""),
        ("5.5", ""),
        ("0", ""),
        ("fifty", ""),
        ("x50", ""),
        ("", ""),
        ("<think>50", ""),
    ],
)
def test_a_guess_in_words(guess, text, digits):
    assert guess.words(text) == tuple(map(int, digits))


def test_the_host_answers(guess):
    check_task(guess)
    question = guess.ask("Guess.", 30)
    tokens, mask = guess.converse(question, ["50", "25", "hm", "30"])
    told = guess.dialogue(question, tokens)
    assert [told.count(words) for words in ("My number is lower.", "My number is higher.", "Say one whole")] == [
        1,
        1,
        1,
    ]
    assert replay(guess, [question], tokens[None]).reward[0] == pytest.approx(1 - 3 / 10 - 0.05)
    assert mask.sum() == sum(len(guess.encode_response(text)) for text in ("50", "25", "hm", "30"))


def test_both_faces_of_the_guessing_game_pay_alike(guess):
    game, generator = GuessNumber(), np.random.default_rng(0)
    for _ in range(20):
        number, tried = int(generator.integers(1, 101)), generator.integers(0, 130, size=12).tolist()
        question, plain = guess.ask("Guess.", number), game.question(np.random.default_rng(0))
        plain = type(plain)(plain.prompt, number)
        tokens, _ = guess.converse(question, [str(one) for one in tried])
        digits, _ = play(game, plain, [game.encode(" ".join(str(one))) for one in tried])
        assert replay(guess, [question], tokens[None]).reward == replay(game, [plain], digits[None]).reward


@pytest.mark.parametrize(
    ("text", "turn"),
    [
        ("ask tin-taste", "ask tin-taste"),
        ("Ask: tin taste", "ask tin-taste"),
        ("Do you have a tin-taste in your mouth?", "ask tin-taste"),
        ("Let me ask about salt-tears.", "ask salt-tears"),
        ("diagnose velmoria", "diagnose velmoria"),
        ("**Diagnose velmoria**.", "diagnose velmoria"),
        ("My diagnosis is Velmoria.", "diagnose velmoria"),
        ("You have tin-taste and salt-tears, so I diagnose velmoria.", "diagnose velmoria"),
        ("<think>velmoria?</think>ask tin-taste", "ask tin-taste"),
        ("ask tin-taste\nask salt-tears", "ask salt-tears"),
        ("ask tin-taste and salt-tears", ""),
        ("Could it be velmoria?", ""),
        ("velmoria or drandle-fever", ""),
        ("How are you?", ""),
        ("ask velmoria", ""),
        ("May I ask: do you have tin-taste?", "ask tin-taste"),
        ("diagnose tin", ""),
        ("tin", ""),
    ],
)
def test_a_doctor_in_words(doctor, text, turn):
    expected = doctor.game.encode(turn)
    assert doctor.words(text) == expected


def test_both_faces_of_the_consultation_pay_alike(doctor):
    check_task(doctor)
    game, base = Consultation(), doctor.game.knowledge_base
    for seed in range(10):
        question, plain = doctor.question(np.random.default_rng(seed)), game.question(np.random.default_rng(seed))
        assert question.secret.secret == plain.secret
        said = [f"ask {base.symptoms[seed]}", "hm", f"ask {base.symptoms[3]}", f"ask {base.symptoms[3]}"]
        said.append(f"diagnose {base.diseases[seed]}")
        tokens, _ = doctor.converse(question, said)
        words, _ = play(game, plain, [game.encode(text) if text != "hm" else () for text in said])
        one, other = (replay(*given) for given in ((doctor, [question], tokens[None]), (game, [plain], words[None])))
        assert {name: values.tolist() for name, values in one.parts.items()} == {
            name: values.tolist() for name, values in other.parts.items()
        }


def test_the_patient_answers_in_sentences(doctor):
    question = doctor.question(np.random.default_rng(3))
    patient, symptoms = question.secret.secret, doctor.game.knowledge_base.symptoms
    assert f"I have {symptoms[patient.complaint]}." in question.secret.text
    tokens, _ = doctor.converse(question, [f"ask {symptoms[patient.complaint]}", "what?"])
    told = doctor.dialogue(question, tokens)
    assert f"Yes, I have {symptoms[patient.complaint]}." in told and "Please ask me about one symptom" in told


FACES = {"llm_mdp/GuessNumber-v0": GuessNumberText, "llm_mdp/Consultation-v0": ConsultationText}


@pytest.mark.parametrize("id", FACES)
def test_text_makes_the_face_in_words(id):
    tokenizer = tokenizer_with(SMOLLM2)
    env = gym.make(id, text=True, tokenizer=tokenizer, max_turns=3).unwrapped
    assert type(env.task) is FACES[id] and env.task.max_turns == 3 and env.task.tokenizer is tokenizer
    many = gym.make_vec(id, num_envs=2, text=True, malformed_penalty=0.25)
    assert type(many.task) is FACES[id] and many.task.max_turns == many.task.game.max_turns
    assert type(gym.make(id, text=False).unwrapped.task) in (GuessNumber, Consultation)
    assert type(find_task(id, {"text": True})) is FACES[id]


def test_text_from_the_class():
    assert type(GuessNumber(20, text=True, max_turns=3)) is GuessNumberText
    assert GuessNumber(20, text=True).game.highest == 20
    assert type(GuessNumber(20, text=False)) is GuessNumber and GuessNumber(20).highest == 20
    assert type(Consultation(text=True, max_turns=3)) is ConsultationText
    assert "highest" in inspect.signature(GuessNumber).parameters
    copy = pickle.loads(pickle.dumps(GuessNumber(20)))
    assert type(copy) is GuessNumber and copy.highest == 20


@pytest.mark.parametrize("game", [GuessNumber, Consultation])
@pytest.mark.parametrize("value", ["yes", 1, None])
def test_text_is_true_or_false(game, value):
    with pytest.raises(ValueError, match=f"text is {value!r}; it must be True or False"):
        game(text=value)


@pytest.mark.parametrize("given", [{"foo": 1}, {"restricted": True}, {"text": True}])
def test_arguments_that_words_do_not_have(given):
    with pytest.raises(TypeError, match=f"no argument '{next(iter(given))}'"):
        ConsultationText(**given)


def test_a_model_gets_its_tokenizer(tmp_path):
    tokenizer_with(SMOLLM2).save_pretrained(tmp_path)
    GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=300).save_pretrained(tmp_path)
    task = find_task("GuessNumber", {"text": True}, ModelConfig(str(tmp_path)))
    assert task.tokenizer.eos_token == "<|im_end|>"
