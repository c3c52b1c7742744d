"""Values: equality, hash and `repr` as attrs would write them."""

import ast
import functools
import importlib
import pathlib
import pickle
from collections.abc import Hashable

import attrs
import pytest

import fluxbase_aichat
from fluxbase_aichat import Chatbot, Interval, Limits, Usage, events
from fluxbase_aichat._value import Value

PACKAGE = pathlib.Path(fluxbase_aichat.__file__).parent


@functools.cache
def twin(cls):
    """Return the class as attrs alone would make it, with the same fields."""
    fields = {
        field.name: attrs.field(
            default=field.default,
            init=field.init,
            eq=field.eq,
            repr=field.repr,
            kw_only=field.kw_only,
        )
        for field in attrs.fields(cls)
    }
    return attrs.make_class(cls.__name__, fields, frozen=True, slots=True)


EXAMPLES = [
    (Usage, {}),
    (Usage, {"prompt_tokens": 3}),
    (Usage, {"prompt_tokens": 3, "cached_tokens": 0}),
    (Interval, {"months": 1}),
    (Limits, {}),
    (Chatbot, {"id": "1", "raw": {"a": 1}}),
    (Chatbot, {"id": "1", "raw": {"a": 2}}),
    (Chatbot, {"id": "2", "raw": {"a": 2}}),
    (events.Content, {"delta": "a"}),
    (events.Content, {"delta": "a", "raw": {"x": 1}}),
    (events.UnknownEvent, {"conversation_id": "c"}),
    (events.Connected, {}),
]


@pytest.mark.parametrize(("cls", "fields"), EXAMPLES)
def test_a_value_is_what_attrs_would_make_of_it(cls, fields):
    """It shows itself the same, equals the same, and can be hashed if it could be."""
    value, written = cls(**fields), twin(cls)(**fields)
    assert repr(written) == repr(value)
    for other, more in EXAMPLES:
        same = other is cls and twin(cls)(**more) == written
        assert same == (value == other(**more))
        assert same != (value != other(**more))
    assert isinstance(value, Hashable)
    try:
        hash(written)
    except TypeError:
        with pytest.raises(TypeError, match="unhashable"):
            hash(value)
    else:
        assert hash(cls(**fields)) == hash(value)


@pytest.mark.parametrize(("cls", "fields"), EXAMPLES)
def test_a_value_stays_as_it_is(cls, fields):
    """It is frozen, has slots, and comes back from pickle and evolve as itself."""
    value = cls(**fields)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(value, attrs.fields(cls)[0].name, None)
    assert not hasattr(value, "__dict__")
    assert value == pickle.loads(pickle.dumps(value))
    assert value == attrs.evolve(value)


def test_values_of_different_classes_differ():
    """Also of a class and one made of it; and what is no value is asked itself."""
    assert events.Connected() != events.Reconnected()
    assert events.Event() != events.UnknownEvent()
    assert events.Connected().__eq__("connected") is NotImplemented


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_all_frozen_classes_are_values(path):
    """One way for all: a frozen class without the base would be equal to itself only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ClassDef):
            continue
        written = [ast.unparse(decorator) for decorator in node.decorator_list]
        if any(text.startswith("attrs.frozen") for text in written):
            module = importlib.import_module(f"fluxbase_aichat.{path.stem}")
            is_value = issubclass(getattr(module, node.name), Value)
            assert is_value == ("eq=False, repr=False" in written[0])
            assert is_value or "eq=False" in written[0]  # equal to itself only, on purpose
