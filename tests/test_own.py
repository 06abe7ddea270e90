"""What people bring: files and names, and the sentences about them."""

import pytest

from llm_mdp.own import UsageError, did_you_mean, error_in_own_code, is_own, load, load_module, place_in_own_code


def test_the_nearest_name_is_offered():
    assert did_you_mean("rlo", ["rloo", "grpo"], "look elsewhere.") == "did you mean rloo?"
    assert did_you_mean("zzz", ["rloo", "grpo"], "look elsewhere.") == "look elsewhere."
    assert is_own("my_file.py:Mine") and is_own("package.module:Mine") and not is_own("rloo")


def test_what_stands_in_a_file_is_loaded(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("class Mine:\n    number = 3\n")
    assert load(f"{file}:Mine").number == 3 and load("math:pi") > 3


@pytest.mark.parametrize(
    ("content", "name", "sentence"),
    [
        ("class Mine: ...\nclass Other: ...\n", "Mnie", r"has no 'Mnie'; it defines Mine, Other\.$"),
        ("def mine(rewards): ...\n", "mien", r"has no 'mien'; it defines mine\.$"),
        ("x = 1\n", "Mine", r"has no 'Mine'; it defines no class and no function\.$"),
        ("def f(:\n", "Mine", "cannot be read as Python: "),
        (
            "from llm_mdp.policies import TabularPolicy\n",
            "Mine",
            r"modules have moved since 0\.1, import",
        ),
        (
            "from llm_mdp.estimators import GRPO\n",
            "Mine",
            r"moved since 0\.1, .*from llm_mdp import Estim",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_words(content, name, sentence, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(content)
    with pytest.raises(UsageError, match=sentence):
        load(f"{file}:{name}")


def test_a_file_that_is_not_there_and_a_module_that_is_not():
    with pytest.raises(UsageError, match=r"^there is no file nowhere\.py\.$"):
        load_module("nowhere.py")
    with pytest.raises(UsageError, match=r"^module 'no_such_module' cannot be imported .* a file is written FILE\.py"):
        load_module("no_such_module")


def test_what_a_file_itself_lacks_is_its_own_error(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        load_module(str(file))


@pytest.mark.parametrize("folder", ["mine", "llm_mdp"])
def test_a_user_s_file_is_theirs_whatever_the_folder_is_called(folder, tmp_path):
    """A clone may well be called llm_mdp."""
    file = tmp_path / folder / "mine.py"
    file.parent.mkdir()
    file.write_text("def fail():\n    return 1 / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        load(f"{file}:fail")()
    # The test's own frame is outermost, the user's innermost.
    assert place_in_own_code(caught.value) == "mine.py, line 2, in fail"


def test_our_own_errors_are_nobody_s():
    try:
        load_module("nowhere.py")
    except UsageError as error:
        assert place_in_own_code(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)) is None


def test_a_place_names_class_and_method_wherever_the_class_stands():
    class Mine:
        def fail(self):
            raise KeyError("answer")

    with pytest.raises(KeyError) as caught:
        Mine().fail()
    said = error_in_own_code(caught.value)
    assert said is not None and said.endswith(", in Mine.fail: KeyError: 'answer'")
    assert error_in_own_code(KeyError("answer")) is None
