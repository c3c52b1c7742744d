"""What commands keep: files written whole or not at all, a table of a chat, one run a batch."""
# ruff: noqa: F401, F811 - fixtures are imported by name

from __future__ import annotations

import csv
import errno
import io
import json
import os
import stat

import pytest
from click.testing import CliRunner, Result
from commands import home, invoke, server, variables

from fluxbase_aichat.cli import _files
from fluxbase_aichat.cli._app import app
from fluxbase_aichat.cli._typed import remembering, typed_file

USERS = "How many users are there per country?"


def chat(server, *lines: str, options=()) -> Result:
    """Hold a chat without a terminal."""
    text = "".join(f"{line}\n" for line in lines)
    arguments = ["chat", "sql-assistant", *options]
    return CliRunner().invoke(app, arguments, input=text, env=variables(server))


def interrupted(*_: object) -> None:
    """Be interrupted by Ctrl-C."""
    raise KeyboardInterrupt


def full(*_: object) -> None:
    """Be on a disk without room."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# -- files ------------------------------------------------------------------------------------


def test_a_file_is_written_whole(tmp_path) -> None:
    """With the rights that other programs give theirs, or for its owner alone."""
    before = os.umask(0o022)
    try:
        _files.write_whole(tmp_path / "a", "one\r\ntwo\n")
        _files.write_whole(tmp_path / "b", "one", private=True)
    finally:
        os.umask(before)
    assert b"one\r\ntwo\n" == (tmp_path / "a").read_bytes()
    assert [0o644, 0o600] == [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in "ab"]


@pytest.mark.parametrize("failing", [interrupted, full])
def test_what_was_there_before_stays(tmp_path, monkeypatch, failing) -> None:
    """No half of the new one is left beside it."""
    file = tmp_path / "a"
    file.write_text("before")
    monkeypatch.setattr(_files.os, "fsync", failing)
    with pytest.raises((KeyboardInterrupt, OSError)):
        _files.write_whole(file, "after")
    assert "before" == file.read_text()
    assert [file] == list(tmp_path.iterdir())


def test_a_file_system_without_locks(tmp_path, monkeypatch) -> None:
    """Nobody is kept out, and nobody fails."""
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with (tmp_path / "a").open("ab") as file:
        assert _files.lock(file, wait=False)
        assert _files.lock(file, wait=True)


@pytest.mark.parametrize("name", ["append_history_file", "nothing"])
def test_what_was_typed_is_kept_by_either_library(monkeypatch, name) -> None:
    """GNU's can append to a file; another can only write it."""
    readline = pytest.importorskip("readline")
    monkeypatch.delattr(readline, name, raising=False)
    readline.clear_history()
    try:
        for line in ("one", "two"):
            with remembering() as keep:
                readline.add_history(line)
                keep()
            readline.clear_history()
        with remembering():
            assert 2 == readline.get_current_history_length()
    finally:
        readline.clear_history()
    assert ["one", "two"] == typed_file().read_text().splitlines()[-2:]


# -- /save ------------------------------------------------------------------------------------


def test_saving_the_last_table(server, tmp_path, monkeypatch) -> None:
    """All its rows, whatever was cut on the screen; further talk does not lose it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    result = chat(server, "sql SELECT id FROM shop.orders", "say one", "/save ~/all of it.csv")
    assert 0 == result.exit_code
    assert "420 rows are in ~/all of it.csv." in result.output
    rows = list(csv.DictReader(io.StringIO((tmp_path / "all of it.csv").read_text())))
    assert 420 == len(rows)


def test_what_is_saved_is_what_csv_prints(server, tmp_path) -> None:
    """Also with the answers as CSV or JSON, and of an answer that failed behind its table."""
    file = tmp_path / "a.csv"
    result = chat(server, USERS, f"/save {file}", options=("--csv",))
    assert result.stdout.startswith(file.read_text())
    result = chat(server, f"sql SELECT 1 AS one\\\n---\\\nfail\n/save {tmp_path / 'b.csv'}")
    assert "1 row is in " in result.output
    assert "one\n1\n" == (tmp_path / "b.csv").read_text()


def test_what_cannot_be_saved(server, tmp_path, monkeypatch) -> None:
    """Each is told, nothing is overwritten, and the chat goes on."""
    (tmp_path / "there").write_text("mine")
    for lines, told in (
        ((f"/save {tmp_path / 'a'}",), "there is no table to save yet"),
        (("/save",), "/save is no command, or has other arguments"),
        ((USERS, f"/save {tmp_path / 'there'}"), "there is there already"),
        ((USERS, f"/save {tmp_path}"), "is there already"),
        ((USERS, f"/save {tmp_path / 'no' / 'a'}"), "No such file or directory"),
        ((USERS, f"/save {tmp_path / 'there' / 'a'}"), "Not a directory"),
        ((USERS, "/save ~nobody-has-this-name/a"), "cannot write ~nobody-has-this-name/a"),
        ((USERS, f"/save {tmp_path}/a\0b"), "cannot write"),
    ):
        result = chat(server, *lines, "say still here")
        assert told in " ".join(result.stderr.split()), lines
        assert "still here" in result.stdout
        assert 1 == result.exit_code
    monkeypatch.setattr(_files.os, "fsync", full)
    assert "No space left" in chat(server, USERS, f"/save {tmp_path / 'a'}").stderr
    assert "mine" == (tmp_path / "there").read_text()
    assert [tmp_path / "there"] == list(tmp_path.iterdir())


# -- batch ------------------------------------------------------------------------------------


def test_two_runs_on_one_file_of_answers(server, tmp_path) -> None:
    """The second says so, asks nothing and touches nothing; later it may."""
    pytest.importorskip("fcntl")
    questions, answers = tmp_path / "questions", tmp_path / "answers"
    questions.write_text(json.dumps("say one"))
    arguments = ("batch", "sql-assistant", str(questions), "-o", str(answers))
    torn = '{"question": "say'  # the other run is just writing it
    with answers.open("ab") as other:
        assert _files.lock(other, wait=False)
        answers.write_text(torn)
        result = invoke(server, *arguments)
        assert f"another run writes {answers}: wait for its end" in str(result.exception)
        assert 1 == result.exception.exit_code
        assert 0 == server.connections
        assert torn == answers.read_text()
    assert 0 == invoke(server, *arguments).exit_code
    assert "one" == json.loads(answers.read_text())["reply"]["text"]
