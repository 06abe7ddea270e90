"""Arguments of environments as people type them."""

import pytest

from llm_mdp.cli.options import env_arguments


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("true", True),
        ("True", True),
        ("false", False),
        ("null", None),
        ("None", None),
        ("-2.5", -2.5),
        ("outcome", "outcome"),
        ("'true'", "true"),
        ("a=b", "a=b"),
    ],
)
def test_values_are_python_or_json_or_texts(typed, value):
    assert env_arguments([f"text={typed}"]) == {"text": value}
