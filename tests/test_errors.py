"""The error tree: what each error is, carries and survives."""

import copy
import pickle

import pytest

from fluxbase_aichat import errors

ALL = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", ALL)
def test_one_message_and_picklable(kind):
    """Every error takes one message and comes back whole from another process."""
    error = kind("It broke.", sent=True, retry_after=2.5, partial_text="half", hint="do this")
    again = pickle.loads(pickle.dumps(error))
    assert type(error) is type(again)
    assert (
        again.sent,
        again.retry_after,
        again.partial_text,
        again.hint,
    ) == (True, 2.5, "half", "do this")
    assert str(error) == str(again) == str(copy.copy(error)) == "It broke. (do this)"


@pytest.mark.parametrize("kind", ALL)
def test_defaults(kind):
    """An error without details has the defaults, and an unknown detail is refused."""
    error = kind("It broke.")
    assert error.sent in {None, False, True}
    assert "" == error.partial_text == error.hint
    assert error.retry_after is None
    with pytest.raises(TypeError, match="colour"):
        kind("It broke.", colour="red")


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ConfigurationError", ValueError),
        ("MissingExtraError", ImportError),
        ("NotConnectedError", ConnectionError),
        ("ConnectError", ConnectionError),
        ("ConnectTimeoutError", TimeoutError),
        ("AuthenticationError", PermissionError),
        ("PermissionDeniedError", PermissionError),
        ("ConnectionLostError", ConnectionError),
        ("ChatTimeoutError", TimeoutError),
        ("ChatbotNotFoundError", LookupError),
        ("NotFoundError", LookupError),
        ("IdentityConflictError", ValueError),
        ("NoTableError", LookupError),
        ("PoolTimeoutError", TimeoutError),
        ("LocalProtocolError", ValueError),
    ],
)
def test_builtin_ancestors(name, builtin):
    """The builtin that a caller may already catch catches ours."""
    assert issubclass(getattr(errors, name), builtin)
    assert issubclass(getattr(errors, name), errors.FluxbaseChatError)


def test_the_docstring_draws_the_tree():
    """The picture at the top of the module names every class, under its parent."""
    drawn = {}
    path = []
    for line in errors.__doc__.splitlines():
        name = line.lstrip("│├└─ ").split(" ")[0]
        if name in errors.__all__:
            depth = (len(line) - len(line.lstrip("│├└─ "))) // 3
            path[depth:] = [name]
            drawn[name] = path[depth - 1] if depth else "Exception"
    actual = {kind.__name__: kind.__mro__[1].__name__ for kind in ALL}
    assert drawn == actual


def test_a_lost_connection_leaves_its_turn_behind():
    """The turn of a lost connection stays in its process."""
    error = errors.ConnectionLostError("lost", turn=object(), sent=True)
    assert pickle.loads(pickle.dumps(error)).turn is None
    assert pickle.loads(pickle.dumps(error)).sent is True
