"""What a user keeps of an answer."""

import copy
import json
import pickle
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbase_aichat.errors import ConfigurationError, NoTableError
from fluxbase_aichat.results import (
    IntentRule,
    QueryResult,
    Quota,
    QuotaCounter,
    Reply,
    ToolOutput,
    Usage,
)

TRANSCRIPTS = Path(__file__).parent / "transcripts"

FAILED = QueryResult("SELECT nope FROM users", "Query failed to execute")
REJECTED = QueryResult("SELECT * FROM secrets", "Query was rejected due to security validation")


def recorded(name, kind):
    """Return the messages of one type that the recorded server sent."""
    lines = (TRANSCRIPTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [line["text"] for line in map(json.loads, lines) if line["dir"] == "in"]
    return [message for message in map(json.loads, texts) if message["type"] == kind]


def query_result(message):
    """Make the value of a recorded message, whose empty fields the server leaves out."""
    names = attrs.fields_dict(QueryResult)
    return QueryResult(**{name: value for name, value in message.items() if name in names})


def query_results(name):
    return [query_result(message) for message in recorded(name, "query_result")]


# --- Query results --------------------------------------------------------------------------


def test_columns_are_in_the_order_of_the_query():
    """The server sorts the keys of a row; the SQL undoes it."""
    (users,) = query_results("turn_sql")
    expected = ("name", "email", "created_at")
    assert expected == users.columns
    assert [*expected] == [*users[0]]
    assert [*users.data[0]] == ["created_at", "email", "name"]


def test_columns_of_a_star_are_in_the_order_of_the_server():
    """What the query does not name stays as it came."""
    types, grouped = query_results("turn_sql_column_types")
    assert [*types.data[0]] == [*types.columns]
    assert [*grouped.data[0]] == [*grouped.columns]  # avg(i8) a: an alias without AS


def test_recorded_column_types():
    """UUID, time and interval are converted, the rest is as on the wire, and so is `data`."""
    types, grouped = query_results("turn_sql_column_types")
    (row,) = types
    converted = {
        "u": UUID("00000000-0000-4000-8000-000000000001"),
        "tm": time(12, 34, 56),
        "iv": timedelta(days=1, hours=2, minutes=3, seconds=4),
    }
    assert {**types.data[0], **converted} == row
    assert types.data[0]["u"] == [0, 0, 0, 0, 0, 0, 64, 0, 128, 0, 0, 0, 0, 0, 0, 1]
    assert [None, converted["u"]] == [row["u"] for row in grouped]


def test_rows_as_the_user_says():
    """The dates and numbers of the recorded row, as the types of the database."""
    types, _ = query_results("turn_sql_column_types")
    wanted = {"d": "date", "ts": "timestamp", "tz": "timestamptz", "u": "array", "i8": str}
    (row,) = types.rows_as({**wanted, "nul": "uuid", "ai": "json", "f8": "numeric"})
    expected = {
        "d": date(2026, 2, 28),
        "ts": datetime(2026, 2, 28, 12, 34, 56),  # noqa: DTZ001 - a timestamp without time zone
        "tz": datetime(2026, 2, 28, 10, 34, 56, tzinfo=UTC),
        "u": types.data[0]["u"],
        "i8": "9223372036854775807",
        "nul": None,
        "ai": [1, 2, 3],
        "f8": Decimal("0.1"),
        "tm": time(12, 34, 56),
    }
    assert expected == {name: row[name] for name in expected}


def test_rows_as_a_mistake():
    """A wrong column or type says the right ones."""
    (users,) = query_results("turn_sql")
    with pytest.raises(ConfigurationError, match="did you mean 'created_at'"):
        users.rows_as({"createdat": "date"})
    with pytest.raises(ConfigurationError, match="did you mean 'timestamp'"):
        users.rows_as({"created_at": "timestmp"})
    with pytest.raises(ConfigurationError, match=r"row 0 .* 'integer'"):
        users.rows_as({"name": "integer"})


def test_rows_as_without_rows():
    """A script that names types goes on when its query finds nothing."""
    (nobody,) = query_results("turn_sql_no_rows")
    assert nobody.rows_as({"id": "uuid"}) == []


def test_result_is_a_sequence_of_rows():
    """Length, index, slice, iteration, reversal and membership are those of a list."""
    (users,) = query_results("turn_sql")
    names = ["Ada", "Béla", "Chloë", "Dmitri", "Eun-ji"]
    assert names == [row["name"] for row in users]
    assert names[::-1] == [row["name"] for row in reversed(users)]
    assert names[1:3] == [row["name"] for row in users[1:3]]
    assert names[-1] == users[-1]["name"]
    assert len(names) == len(users) == users.row_count
    assert users.rows[2] in users
    assert users.rows is users.rows
    with pytest.raises(IndexError):
        users[5]


def test_result_is_always_true():
    """Whether a result is there does not depend on how many rows it has."""
    (nobody,) = query_results("turn_sql_no_rows")
    assert len(nobody) == 0
    assert nobody
    assert nobody.rows == []
    assert nobody.columns == ()


def test_rows_without_some_columns():
    """A column that a row lacks is not made up."""
    result = QueryResult(data=[{"a": [7] * 16}, {"b": 1}])
    assert [{"a": UUID(bytes=b"\x07" * 16)}, {"b": 1}] == result.rows


@pytest.mark.parametrize(
    ("expected", "summary"),
    [
        ("empty", "Query executed successfully but returned 0 rows - no data matches your query"),
        ("empty", "Query returned 0 row(s)."),
        ("empty", "Returned 0 row(s) in 1ms"),
        ("failed", "Query failed to execute"),
        ("rejected", "Query was rejected due to security validation"),
        ("unknown", ""),
        ("unknown", "Something new"),
        ("unknown", "Query returned 5 row(s). Tables accessed: [users]"),
        ("unknown", "Returned 2 row(s) in 1ms"),
    ],
)
def test_status_of_a_result_without_rows(expected, summary):
    """A failed query looks like an empty one but for its summary."""
    assert expected == QueryResult("SELECT 1", summary).status


def test_status_of_recorded_results():
    """Rows are the proof that a query succeeded."""
    assert [result.status for result in query_results("turn_sql")] == ["ok"]
    assert [result.status for result in query_results("turn_sql_no_rows")] == ["empty"]
    assert QueryResult("SELECT 1", "Something new", 1, [{"a": 1}]).status == "ok"


def test_result_is_frozen_and_pickled_without_its_cache():
    """A result goes to another process as what the server sent."""
    (users,) = query_results("turn_sql")
    before = pickle.dumps(users)
    assert users.rows
    assert before == pickle.dumps(users)
    again = pickle.loads(before)
    assert users == again == copy.deepcopy(users)
    assert users.rows == again.rows
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        users.query = ""


def test_repr_is_short():
    """A repr of the largest result is a line."""
    (users,) = query_results("turn_sql")
    assert repr(users) == "<QueryResult ok: 5 row(s) of (name, email, created_at)>"
    wide = QueryResult("x" * 10**6, "y" * 10**6, 1, [{"c" * 10**6: "z" * 10**6}])
    assert len(repr(wide)) < 200
    assert len(repr(ToolOutput("think", [{"tool": "think", "result": "z" * 10**6}]))) < 200
    assert len(repr(Reply(text="z" * 10**6, query_results=(wide,)))) < 200


def test_repr_is_one_harmless_line():
    """Names from a server cannot break a line or a terminal."""
    evil = "\x1b[2J\n"
    for value in (QueryResult(data=[{evil: 1}]), ToolOutput(evil), Reply(text=evil)):
        assert repr(value).isprintable()


# --- In a notebook --------------------------------------------------------------------------


def test_html_shows_the_query_and_its_rows():
    """The SQL and the table, in the order of the query, with nulls told from text."""
    html = QueryResult("SELECT b, a FROM t", "", 1, [{"a": None, "b": "x"}])._repr_html_()
    expected = (
        "<pre>SELECT b, a FROM t</pre>\n"
        "<table>\n<thead><tr><th>b</th><th>a</th></tr></thead>\n<tbody>\n"
        "<tr><td>x</td><td><em>null</em></td></tr>\n</tbody>\n</table>"
    )
    assert expected == html


def test_html_is_escaped():
    """Nothing that a database or a model says runs in a notebook."""
    evil = "<script>alert('\"&')</script>"
    for result in (QueryResult(evil, evil, 1, [{evil: evil}]), QueryResult(evil, evil)):
        html = result._repr_html_()
        assert "<script" not in html
        assert "&lt;script&gt;alert(&#x27;&quot;&amp;&#x27;)&lt;/script&gt;" in html


def test_html_is_bounded():
    """At most 50 rows are shown, and a line says how many more there are."""
    html = QueryResult("", "", 120, [{"n": i} for i in range(120)])._repr_html_()
    assert html.count("<tr>") == 51
    assert html.endswith("<p>… and 70 more row(s)</p>")
    assert len(QueryResult("q" * 10**6, "", 1, [{"a": "x" * 10**6}])._repr_html_()) < 5_000


@pytest.mark.parametrize(
    ("result", "caption"),
    [
        (FAILED, "<em>The query failed.</em> Query failed to execute"),
        (REJECTED, "<em>The query was rejected.</em> Query was rejected due to security"),
        (QueryResult(), "<em>No rows, and the server does not say why.</em>"),
        (QueryResult("", "Query returned 0 row(s)"), "<em>No rows.</em>"),
    ],
)
def test_html_of_no_rows_says_why(result, caption):
    """A failed query does not look like an empty table."""
    assert caption in result._repr_html_()


def test_html_can_always_be_stored():
    """Half of a surrogate pair, legal in JSON, does not break a notebook."""
    html = QueryResult("\ud800", "", 1, [{"a": "\udfff"}])._repr_html_()
    assert "<td>?</td>" in html
    assert html.encode()


# --- Tools ----------------------------------------------------------------------------------


def tool_output(message):
    query = query_result(message) if "query" in message else None
    return ToolOutput(message["message"], message["data"], query)


def test_recorded_tool_outputs():
    """A tool gives a text, or rows when it ran SQL."""
    table, sql = map(tool_output, recorded("turn_mcp_tools", "tool_result"))
    assert (table.tool, table.query_result) == ("query_table", None)
    assert table.data[0]["result"] == table.text
    assert [row["name"] for row in json.loads(table.text)] == ["Ada", "Béla"]
    assert (sql.tool, sql.text, sql.query_result.status) == ("execute_sql", "", "ok")
    assert [{"name": "Ada"}, {"name": "Béla"}] == sql.query_result.rows == sql.data


@pytest.mark.parametrize(
    "data",
    [[], [{"tool": "t", "result": 5}], [{"result": "x"}], [{"tool": "t", "result": "x"}] * 2, [5]],
)
def test_tool_output_of_another_shape_has_no_text(data):
    """What a newer server sends is in `data`, and is not misread."""
    assert ToolOutput("t", data).text == ""


# --- Replies --------------------------------------------------------------------------------


def reply(*results, **fields):
    return Reply(query_results=results, **fields)


def test_table_is_the_last_successful_result():
    """A query that failed afterwards does not hide the table; an empty one is a table."""
    (users,) = query_results("turn_sql")
    (nobody,) = query_results("turn_sql_no_rows")
    assert reply(users, FAILED, REJECTED, QueryResult()).table is users
    assert reply(users, nobody).table is nobody


def test_no_table_says_what_the_server_said():
    """Why there is no table is in the error, whatever the number of queries."""
    with pytest.raises(NoTableError, match=r"^the answer has no query result$"):
        _ = reply().table
    with pytest.raises(NoTableError) as caught:
        _ = reply(FAILED, REJECTED, QueryResult()).table
    expected = (
        "no query of this answer succeeded: Query failed to execute; "
        "Query was rejected due to security validation; no summary"
    )
    assert expected == str(caught.value)
    with pytest.raises(NoTableError) as caught:
        _ = reply(*[QueryResult("", "x" * 10**6)] * 100).table
    assert len(str(caught.value)) < 1_500


def test_reply_as_text_and_markdown():
    """`str` is the text as it came; Markdown has a blank line where tools ran."""
    answer = Reply(text="Let me look.There are five.", segments=("Let me look.", "There are five."))
    assert str(answer) == "Let me look.There are five."
    assert answer._repr_markdown_() == "Let me look.\n\nThere are five."
    assert Reply(text="Hello")._repr_markdown_() == "Hello"


def test_repr_keeps_the_conversation_secret():
    """Whoever knows the id can read the conversation, so no log shows it."""
    answer = Reply(text="Hello", conversation_id="852d89c9", query_results=(FAILED,))
    assert repr(answer) == "<Reply 'Hello', 1 query result(s)>"


def test_stored_reply_shares_the_rows_of_a_tool():
    """The rows of `execute_sql` are written once, and are one object again."""
    _, sql = map(tool_output, recorded("turn_mcp_tools", "tool_result"))
    stored = reply(sql.query_result, tool_results=(sql,)).to_dict()
    assert stored["tool_results"] == [{"tool": "execute_sql", "data": None, "query_result": 0}]
    again = Reply.from_dict(stored)
    assert again.tool_results[0].query_result is again.query_results[0]
    assert again.tool_results[0].data is again.query_results[0].data


def test_stored_reply_is_a_copy():
    """Changing what `to_dict` gave changes no reply."""
    (users,) = query_results("turn_sql")
    answer = reply(users)
    answer.to_dict()["query_results"][0]["data"][0]["name"] = "Eve"
    assert users.data[0]["name"] == "Ada"


def test_other_versions_of_a_stored_reply():
    """What is missing is empty, and what is unknown is passed over."""
    assert Reply() == Reply.from_dict({})
    stored = {"text": "x", "new": 1, "usage": {"total_tokens": 3, "new": 2}, "duration": None}
    assert Reply(text="x", usage=Usage(total_tokens=3)) == Reply.from_dict(stored)


def test_what_is_no_stored_reply():
    """A line of `batch`, say, is no empty reply."""
    with pytest.raises(ConfigurationError, match="no field is here"):
        Reply.from_dict({"question": "x", "reply": {"text": "y"}})


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (None, "from_dict takes what to_dict has returned, not NoneType"),
        ({"text": 5}, "Reply.text cannot be made of this int"),
        ({"segments": ["a", 5]}, "Reply.segments cannot be made of this list"),
        ({"usage": {"total_tokens": "s3cret"}}, "Usage.total_tokens cannot be made of this str"),
        ({"query_results": 5}, "Reply.query_results cannot be made of this int"),
        ({"query_results": [{"data": [5]}]}, "QueryResult.data cannot be made of this list"),
        (
            {"query_results": [{"data": [{"n": {"$decimal": "s3cret"}}]}]},
            "QueryResult.data cannot be made of this list",
        ),
        ({"tool_results": [{"query_result": 0}]}, "ToolOutput.query_result cannot be made of"),
        ({"duration": "s3cret"}, "Reply.duration cannot be made of this str"),
    ],
)
def test_something_else_than_a_stored_reply(stored, message):
    """The error names the field, and not its value."""
    with pytest.raises(ConfigurationError) as caught:
        Reply.from_dict(stored)
    assert str(caught.value).startswith(message)


COUNT = st.integers(0, 2**63)
MAYBE_TEXT = st.none() | st.text(min_size=1)
SECONDS = st.none() | st.floats(0, 1e6)
TAGS = st.sampled_from(["$decimal", "$float", "$object"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.decimals(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | TAGS, inner),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(st.text() | TAGS, VALUES, max_size=3), max_size=3)
RESULTS = st.builds(QueryResult, st.text(), st.text(), COUNT, ROWS)
TOOLS = st.builds(ToolOutput, st.text(), ROWS, st.none() | RESULTS)
COUNTERS = st.builds(QuotaCounter, COUNT, COUNT)
REPLIES = st.builds(
    Reply,
    text=st.text(),
    segments=st.lists(st.text(), max_size=3).map(tuple),
    usage=st.none() | st.builds(Usage, COUNT, COUNT, COUNT, st.none() | COUNT),
    query_results=st.lists(RESULTS, max_size=2).map(tuple),
    tool_results=st.lists(TOOLS, max_size=2).map(tuple),
    conversation_id=st.text(),
    chatbot=st.text(),
    matched_intent_rules=st.lists(
        st.builds(IntentRule, st.text(), MAYBE_TEXT, MAYBE_TEXT, MAYBE_TEXT, MAYBE_TEXT), max_size=2
    ).map(tuple),
    daily_quota=st.none() | st.builds(Quota, COUNTERS, COUNTERS, MAYBE_TEXT),
    duration=SECONDS,
    time_to_first_content=SECONDS,
)


@given(REPLIES)
def test_reply_comes_back_from_json(answer):
    """Storing a reply as strict JSON loses nothing, exact numbers and infinities included."""
    stored = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    again = Reply.from_dict(stored)
    assert answer == again
    assert repr(answer.query_results) == repr(again.query_results)
    assert [repr(result.data) for result in answer.query_results] == [
        repr(result.data) for result in again.query_results
    ]


@given(REPLIES)
def test_reply_comes_back_from_a_pickle(answer):
    """A reply goes to another process or into a cache."""
    assert answer == pickle.loads(pickle.dumps(answer))


@given(RESULTS)
def test_no_result_breaks_a_notebook(result):
    """Every result has its rows and can be shown."""
    assert len(result.data) == len(result.rows)
    assert [row.keys() for row in result.data] == [row.keys() for row in result.rows]
    assert repr(result)
    assert result._repr_html_()
