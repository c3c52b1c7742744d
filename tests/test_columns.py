"""The order of columns from the SQL, and their values from the wire."""

import random
import time as clock
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbase_aichat._columns import check_types, convert, recognise
from fluxbase_aichat._kinds import Interval
from fluxbase_aichat._select import column_order, select_names
from fluxbase_aichat.errors import ConfigurationError

UUID_BYTES = [0, 0, 0, 0, 0, 0, 64, 0, 128, 0, 0, 0, 0, 0, 0, 1]
NOON = 12 * 3_600_000_000


def wire_time(microseconds, *, valid=True):
    return {"Microseconds": microseconds, "Valid": valid}


def wire_interval(months=0, days=0, microseconds=0, *, valid=True):
    return {"Microseconds": microseconds, "Days": days, "Months": months, "Valid": valid}


UNDERSTOOD = {
    "SELECT name, email, created_at FROM users ORDER BY name": ("name", "email", "created_at"),
    "SELECT u.b, public.users.a FROM users u": ("b", "a"),
    "SELECT Name, eMail FROM t": ("name", "email"),
    "SELECT Élan FROM t": ("Élan",),  # PostgreSQL folds ASCII only
    'SELECT "Name", t."a ""b"" c", "x,y" FROM t': ("Name", 'a "b" c', "x,y"),
    "SELECT count(*) AS n, a + b AS sum FROM t": ("n", "sum"),
    "select coalesce(a, 'x, y') as b, c from t": ("b", "c"),
    "SELECT DISTINCT b, a FROM t": ("b", "a"),
    "SELECT DISTINCT ON (a, b) c, a FROM t": ("c", "a"),
    "SELECT ALL b, a FROM t": ("b", "a"),
    "SELECT b, a FROM t UNION SELECT x, y FROM u": ("b", "a"),
    "SELECT 2 AS b, 1 AS a": ("b", "a"),
    "SELECT 2 AS b, 1 AS a LIMIT 1;": ("b", "a"),
    "WITH x AS (SELECT q, r FROM t), y (a) AS (SELECT 1) SELECT b, a FROM x, y": ("b", "a"),
    "WITH RECURSIVE x AS NOT MATERIALIZED (SELECT 1) SELECT b, a FROM x": ("b", "a"),
    "SELECT /* a, /* nested */ FROM */ b, -- c, FROM\n a FROM t": ("b", "a"),
    "SELECT $$ it's, FROM $$ AS b, $x$ $$ ( $x$ AS a FROM t": ("b", "a"),
    "SELECT 'it''s (, FROM' AS b, E'\\', FROM' AS a FROM t": ("b", "a"),
    "SELECT (SELECT max(x) FROM u) AS b, a FROM t": ("b", "a"),
    "SELECT extract(year FROM d) AS b, CAST(x AS int) AS a FROM t": ("b", "a"),
    "SELECT ARRAY[1, 2] AS b, c[1] AS a FROM t": ("b", "a"),
    "SELECT x IS DISTINCT FROM y AS b, a FROM t": ("b", "a"),
    "SELECT percentile_cont(.5) WITHIN GROUP (ORDER BY x) AS b, a FROM t": ("b", "a"),
    "SELECT rank() OVER (PARTITION BY x ORDER BY y) AS b, a FROM t": ("b", "a"),
    "SELECT CASE WHEN x THEN 1 ELSE 2 END AS b, a FROM t": ("b", "a"),
    "SELECT t.from, x AS order, a FROM t": ("from", "order", "a"),
    "SELECT t.as, b FROM t": ("as", "b"),
    "SELECT x::numeric(10, 2) AS b, $1 AS a FROM t": ("b", "a"),
    "SELECT a$b, _c9 FROM t": ("a$b", "_c9"),
}

NOT_UNDERSTOOD = [
    "",
    "SELECT",
    "SELECT * FROM t",
    "SELECT t.*, a FROM t",
    "SELECT a, count(*) FROM t",
    "SELECT avg(i8) a FROM t",
    "SELECT a b FROM t",
    "SELECT a::int FROM t",
    "SELECT (t).a FROM t",
    "SELECT a, FROM t",
    "SELECT a AS 'b' FROM t",
    'SELECT x AS U&"d\\0061t" FROM t',
    "SELECT 'open FROM t",
    'SELECT "open FROM t',
    "SELECT $$open FROM t",
    "SELECT a /* open /* */ FROM t",
    "SELECT (a FROM t",
    "SELECT a) FROM t",
    "SELECT (a] AS b FROM t",
    "SELECT a FROM t; SELECT b FROM t",
    "(SELECT a FROM t) UNION SELECT b FROM t",
    "VALUES (1, 2)",
    "TABLE users",
    "INSERT INTO t SELECT a FROM u RETURNING b",
    "WITH x AS (SELECT 1) INSERT INTO t SELECT a FROM x RETURNING b",
    "WITH x AS (SELECT a FROM t) TABLE x",
    "EXPLAIN SELECT a FROM t",
]


@pytest.mark.parametrize(("query", "names"), UNDERSTOOD.items())
def test_select_list_is_read(query, names):
    """Plain names and aliases are found through comments, quotes, brackets and keywords."""
    assert names == select_names(query)


@pytest.mark.parametrize("query", NOT_UNDERSTOOD)
def test_select_list_is_not_guessed(query):
    """What is not plain to see is left to the server's order."""
    assert select_names(query) is None


def test_query_of_any_length_is_refused():
    """A query longer than anyone writes is not read at all."""
    assert select_names("SELECT a" + " " * 50_000 + "FROM t") is None


HOSTILE = [
    *["'", '"', "/*", "/**/", "$a$ $b$ ", "(", "()", "a,", "--\n", "e'\\", "$", "$a", "a.", "''"],
    *["select ", "as ", "a as ", ";", "[", "\x00", "\ud800", "é", "0", "distinct on (", "''''e"],
]


@pytest.mark.parametrize("start", ["", "select ", "with ", "select '", "select a, $x$"])
@pytest.mark.parametrize("piece", HOSTILE)
def test_time_is_linear(start, piece):
    """No text makes reading slow: a quadratic way would take minutes for these."""
    query = start + piece * ((50_000 - len(start)) // len(piece))
    began = clock.process_time()
    select_names(query)
    assert clock.process_time() - began < 5


def sql():
    """Text of the pieces that SQL is made of, mostly nonsense."""
    marks = [
        *"abc,.;()[]*'\"$",
        " ",
        "\n",
        "--",
        "/*",
        "*/",
        "$$",
        "''",
        "E'",
        "\\",
        "é",
        "1",
        '"B"',
    ]
    words = [" select ", " from ", " as ", " with ", " distinct ", " on ", " union ", " group "]
    pieces = st.sampled_from([*marks, *words])
    return st.one_of(st.text(), st.lists(pieces, max_size=40).map("".join))


def rows():
    keys = st.sampled_from([*"abcé", "B", ""])
    return st.lists(st.dictionaries(keys, st.none(), max_size=5), max_size=4)


@given(query=sql().flatmap(lambda text: st.sampled_from([text, "select " + text])), data=rows())
def test_order_is_a_permutation_of_the_keys(query, data):
    """Whatever the query, no column is lost, invented or doubled."""
    columns = column_order(query, data)
    assert sorted({key for row in data for key in row}) == sorted(columns)


@given(names=st.lists(st.text(min_size=1), min_size=1, unique=True), seed=st.randoms())
def test_quoted_names_come_back(names, seed):
    """Any names, quoted, give the order of the query."""
    shuffled = random.Random(seed.random()).sample(names, len(names))  # noqa: S311 - a test
    quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in shuffled)
    assert tuple(shuffled) == column_order("SELECT " + quoted, [dict.fromkeys(names)])


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ("SELECT b, a FROM t", ("a", "b", "c")),  # a name is missing
        ("SELECT b, a, d FROM t", ("a", "b")),  # one too many
        ("SELECT b, a, b FROM t", ("a", "b")),  # doubled: the server keeps one
        ("SELECT B AS x, a FROM t", ("a", "b")),
    ],
)
def test_names_that_are_not_the_keys_are_not_believed(query, keys):
    """The query decides only when it names exactly what came."""
    assert keys == column_order(query, [dict.fromkeys(keys)])


def test_keys_of_all_rows_count():
    """Rows with different keys give all keys, in the order of their first appearance."""
    expected = ("b", "a", "c")
    assert expected == column_order("", [{"b": 1}, {"a": 1, "b": 2}, {"c": 3}])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([None, UUID_BYTES], [None, UUID("00000000-0000-4000-8000-000000000001")]),
        ([wire_time(NOON), None], [time(12), None]),
        ([wire_time(0), wire_time(86_399_999_999)], [time.min, time.max]),
        ([wire_time(NOON), wire_time(0, valid=False)], [time(12), None]),
        (
            [wire_interval(0, 1, 7_384_000_000), None],
            [timedelta(days=1, hours=2, minutes=3, seconds=4), None],
        ),
        ([wire_interval(0, -1, -1)], [timedelta(days=-1, microseconds=-1)]),
        (
            [wire_interval(14, 3), wire_interval(0, 1), wire_interval(valid=False)],
            [Interval(14, 3), Interval(0, 1), None],
        ),
    ],
)
def test_unmistakable_columns_are_converted(values, expected):
    """UUIDs, times and intervals are known by their shape; nulls stay null."""
    assert expected == recognise(values)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [None, None],
        [1, 2],
        ["x"],
        [[]],
        [UUID_BYTES, UUID_BYTES[1:]],
        [UUID_BYTES, [*UUID_BYTES[1:], 256]],
        [UUID_BYTES, [*UUID_BYTES[1:], -1]],
        [[True] * 16],
        [[1.0] * 16],
        [UUID_BYTES, "text"],
        [wire_time(86_400_000_000)],  # 24:00:00 is a time in SQL and not in Python
        [wire_time(NOON), wire_time(-1)],
        [wire_time(1.5)],
        [wire_time(True)],
        [{"Microseconds": 1, "Valid": 1}],
        [{"Microseconds": 1, "Valid": True, "x": 1}],
        [wire_time(NOON), wire_interval()],
        [wire_interval(), wire_time(NOON)],
        [wire_interval(), "text"],
        [wire_interval(days=2_000_000_000)],
        [wire_interval(microseconds=10**30)],
        [{}],
    ],
)
def test_other_columns_are_left(values):
    """One value that does not fit leaves the whole column as it came."""
    assert recognise(values) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
SHAPES = st.one_of(
    JSON,
    st.lists(st.integers(-1, 256), min_size=15, max_size=17),
    st.fixed_dictionaries({"Microseconds": st.integers(), "Valid": st.booleans()}),
    st.builds(wire_interval, st.integers(), st.integers(), st.integers(), valid=st.booleans()),
)


@given(st.lists(SHAPES, max_size=5))
def test_no_values_make_it_raise(values):
    """Whatever came, a column is converted whole or left."""
    converted = recognise(values)
    assert converted is None or len(values) == len(converted)


@given(st.uuids(), st.times(), st.timedeltas())
def test_every_uuid_time_and_timedelta_comes_back(uuid, moment, length):
    """Conversion loses nothing of what Python can hold."""
    seconds = (moment.hour * 60 + moment.minute) * 60 + moment.second
    microseconds = seconds * 1_000_000 + moment.microsecond
    rest = length.seconds * 1_000_000 + length.microseconds
    assert [uuid] == recognise([list(uuid.bytes)])
    assert [moment] == recognise([wire_time(microseconds)])
    assert [length] == recognise([wire_interval(0, length.days, rest)])


CONVERTED = [
    ("uuid", UUID_BYTES, UUID("00000000-0000-4000-8000-000000000001")),
    ("uuid", "00000000-0000-4000-8000-000000000001", UUID("00000000-0000-4000-8000-000000000001")),
    ("time", wire_time(NOON), time(12)),
    ("time", wire_time(0, valid=False), None),
    ("interval", wire_interval(0, 1), timedelta(days=1)),
    ("interval", wire_interval(1), Interval(1)),
    ("interval", wire_interval(days=2_000_000_000), Interval(days=2_000_000_000)),
    ("timestamp", "2026-02-28T12:34:56Z", datetime(2026, 2, 28, 12, 34, 56)),  # noqa: DTZ001
    ("timestamp", "2026-02-28T12:34:56", datetime(2026, 2, 28, 12, 34, 56)),  # noqa: DTZ001
    ("timestamptz", "2026-02-28T10:34:56Z", datetime(2026, 2, 28, 10, 34, 56, tzinfo=UTC)),
    ("timestamptz", "2026-02-28T10:34:56+02:00", datetime(2026, 2, 28, 8, 34, 56, tzinfo=UTC)),
    ("date", "2026-02-28T00:00:00Z", date(2026, 2, 28)),
    ("date", "2026-02-28", date(2026, 2, 28)),
    ("array", UUID_BYTES, UUID_BYTES),
    ("json", {"a": [1]}, {"a": [1]}),
    ("json", UUID_BYTES, UUID_BYTES),
    ("text", "2026-02-28T00:00:00Z", "2026-02-28T00:00:00Z"),
    ("numeric", 0.1, Decimal("0.1")),
    ("numeric", 2**80, Decimal(2**80)),
    ("numeric", Decimal("12.50"), Decimal("12.50")),
    ("numeric", "12.50", Decimal("12.50")),
    ("integer", 2**80, 2**80),
    ("integer", Decimal("12.00"), 12),
    ("integer", 12.0, 12),
    ("integer", "12", 12),
    ("float", 1, 1.0),
    ("float", Decimal("0.5"), 0.5),
    ("float", "1e3", 1000.0),
    (str.upper, "abc", "ABC"),
    (len, [1, 2], 2),
]


@pytest.mark.parametrize(("wanted", "value", "expected"), CONVERTED)
def test_named_types(wanted, value, expected):
    """A column becomes what the user asks for, also in its type, and its nulls stay."""
    actual = convert("c", [None, value], wanted)
    assert [None, expected] == actual
    assert type(expected) is type(actual[1])


MISFITS = [
    ("uuid", UUID_BYTES[1:]),
    ("uuid", "s3cret"),
    ("uuid", [True] * 16),
    ("uuid", 1),
    ("time", wire_time(86_400_000_000)),
    ("time", "12:00:00"),
    ("interval", wire_time(1)),
    ("timestamp", "s3cret"),
    ("timestamp", "2026-02-28T10:34:56+02:00"),
    ("timestamp", 5),
    ("timestamp", "10000-01-01T00:00:00Z"),
    ("timestamptz", "2026-02-28T10:34:56"),
    ("timestamptz", "0001-01-01T00:00:00+12:00"),
    ("date", "2026-02-28T10:34:56Z"),
    ("array", "s3cret"),
    ("text", 1),
    ("numeric", True),
    ("numeric", "s3cret"),
    ("numeric", [1]),
    ("integer", 1.5),
    ("integer", "NaN"),
    ("integer", Decimal("Infinity")),
    ("integer", Decimal("1e999999999")),
    ("integer", True),
    ("float", "s3cret"),
    ("float", 10**400),
    (int, "s3cret"),
    ({}.__getitem__, "s3cret"),
]


@pytest.mark.parametrize(("wanted", "value"), MISFITS)
def test_misfit_names_column_and_row_only(wanted, value):
    """The error says where, and does not put a user's data into a log."""
    with pytest.raises(ConfigurationError, match=r"types\['c'\]: .* row 1 ") as caught:
        convert("c", [None, value], wanted)
    assert "s3cret" not in str(caught.value)
    assert callable(wanted) == (caught.value.__cause__ is not None)


@given(st.sampled_from([wanted for wanted, _, _ in CONVERTED if isinstance(wanted, str)]), SHAPES)
def test_conversion_succeeds_or_is_a_configuration_error(wanted, value):
    """No value brings out any other exception."""
    with suppress(ConfigurationError):
        assert len(convert("c", [value], wanted)) == 1


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (
            {"placedat": "date"},
            (
                "types: there is no column 'placedat' (did you mean 'placed_at'?); "
                "there are id, placed_at"
            ),
        ),
        ({"x": "date"}, "types: there is no column 'x'; there are id, placed_at"),
        (
            {"id": "uid"},
            (
                "types['id']: there is no type 'uid' (did you mean 'uuid'?); there are array, "
                "date, float, integer, "
                "interval, json, numeric, text, time, timestamp, timestamptz, uuid"
            ),
        ),
        (["id"], "types maps column names to types, such as {'id': 'uuid'}; it is a list"),
    ],
)
def test_wrong_types_are_answered_with_the_right_ones(types, message):
    """A mistake in `types` says what would be right."""
    with pytest.raises(ConfigurationError) as caught:
        check_types(types, ("id", "placed_at"))
    assert message == str(caught.value)


@pytest.mark.parametrize("wanted", [None, 5, ["uuid"]])
def test_type_of_no_kind(wanted):
    """A type is a name or a function."""
    with pytest.raises(ConfigurationError, match=r"types\['id'\]: there is no type"):
        check_types({"id": wanted}, ("id",))


def test_many_columns_are_not_all_listed():
    """An error stays readable when a table is wide."""
    with pytest.raises(ConfigurationError, match=r"c19, …$"):
        check_types({"x": "uuid"}, [f"c{i}" for i in range(1000)])


def test_without_rows_any_column_may_be_named():
    """A script does not break on the day when its query finds nothing."""
    types = {"placed_at": "date"}
    assert types == check_types(types, ())
