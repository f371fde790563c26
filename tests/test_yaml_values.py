"""YAML scalars are those of version 1.2, against its own table, and nothing is lost in silence."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain_tokens.errors import UserError
from domain_tokens.runs.yaml_values import read_yaml, read_yaml_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("042", 42),  # octal in YAML 1.1
        ("0o17", 15),
        ("0x1F", 31),
        ("-7", -7),
        ("+3", 3),
        ("1:30", "1:30"),  # 90 in YAML 1.1, in base 60
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("2e-5", 2e-5),  # a string in YAML 1.1
        ("1.", 1.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("yes", "yes"),  # booleans in YAML 1.1
        ("No", "No"),
        ("off", "off"),
        ("n", "n"),
        ("tRue", "tRue"),
        ("TRUE", True),
        ("false", False),
        ("~", None),
        ("null", None),
        ("2024-01-01", "2024-01-01"),  # a date in YAML 1.1
        ("'042'", "042"),
        ("''", ""),
        ("<<", "<<"),
        ("[a, 1, null]", ["a", 1, None]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_scalars_are_those_of_the_core_schema(text, value):
    read = read_yaml_value(text, "-")
    assert read == value
    assert type(read) is type(value)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), inner)
        ),
    )
)
def test_what_json_writes_is_read_as_json_reads_it(tree):
    """JSON is YAML, and JSON's own reader is the oracle."""
    text = json.dumps(tree)
    assert read_yaml(text, "-") == json.loads(text)


@pytest.mark.parametrize("depth", range(4))
def test_a_key_there_twice_is_named_at_any_depth(depth):
    lines = [f"{'  ' * level}k{level}:" for level in range(depth)]
    lines += [f"{'  ' * depth}same: 1", f"{'  ' * depth}other: 2", f"{'  ' * depth}'same': 1"]
    path = ".".join([*(f"k{level}" for level in range(depth)), "same"])
    with pytest.raises(UserError) as caught:
        read_yaml("\n".join(lines), "F")
    assert f"F: {path} is there twice, in lines {depth + 1} and {depth + 3}" in str(caught.value)


def test_a_key_there_twice_within_a_list_is_named():
    with pytest.raises(UserError, match=r"a\[1\]\.b is there twice, in lines 3 and 4"):
        read_yaml("a:\n- b: 1\n- b: 1\n  b: 2", "F")


@pytest.mark.parametrize("text", ["a:", "a:\nb: 1", "a: # nothing", "b:\n  a:", "a:\n- 1\n-"])
def test_an_empty_value_is_refused(text):
    with pytest.raises(UserError, match=r"is empty \(line \d\); write null to mean none"):
        read_yaml(text, "F")


@pytest.mark.parametrize(
    "text",
    [
        "[1",
        "!!int 1_0",
        "!!float abc",
        "!!bool yes",
        "!!python/object/apply:os.getcwd []",
        "9" * 5000,
        "[" * 3000,
        "&a [*a]",
        "a: b: c",
        "\x00",
        "{[1]: 2}",
    ],
)
def test_what_cannot_be_read_is_one_line(text):
    with pytest.raises(UserError) as caught:
        read_yaml(text, "F")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("F: ")
