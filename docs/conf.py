"""The settings of Sphinx. `python -m docs` builds the pages."""

from __future__ import annotations

import re
from importlib.metadata import version as version_of
from typing import Any, Final

import click

from fluxbase_aichat.cli._app import app as cli

project = "fluxbase_aichat"
author = "the maintainers of fluxbase_aichat"
project_copyright = "MIT licence"
release = version = version_of("fluxbase-aichat")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"fluxbase_aichat {release}"
html_copy_source = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88  # a parameter a line in longer ones
napoleon_use_rtype = False

_SECTION: Final = re.compile(r"(Args|Raises|Returns|Yields):$")


def as_restructured_text(lines: list[str]) -> list[str]:
    """Return a docstring, which is written in Markdown's manner, as Sphinx reads it.

    Single backticks are code, stars are stars, and an indented paragraph is an example.
    """
    result: list[str] = []
    in_section = False
    for number, line in enumerate(lines):
        bare = line.strip()
        indent = len(line) - len(line.lstrip())
        if bare and indent == 0:
            in_section = _SECTION.match(bare) is not None
        before = lines[number - 1].strip() if number else ""
        if bare and not before and indent and not in_section and not _inside(lines, number):
            result += ["::", ""]
        if indent and not in_section:
            result.append(line)
            continue
        # Odd parts are code.
        parts = line.split("`")
        for i, part in enumerate(parts):
            if i % 2 == 0 and not (in_section and bare.startswith("*")):
                parts[i] = part.replace("*", r"\*")
        result.append("``".join(parts))
    return result


def _inside(lines: list[str], number: int) -> bool:
    """Whether an indented line goes on with an example, or with an item of a list."""
    for line in reversed(lines[:number]):
        if line.strip():
            return line.startswith(" ")
    return False


def _docstring(
    app: Any,  # noqa: ARG001 - as Sphinx calls it
    what: str,
    name: str,  # noqa: ARG001
    obj: Any,  # noqa: ARG001
    options: Any,  # noqa: ARG001
    lines: list[str],
) -> None:
    # What a module is for its developers, its page says to users.
    lines[:] = [] if what == "module" else as_restructured_text(lines)


def help_of_commands() -> str:
    """Return what each command of the command line says to `--help`, as a part of a page."""
    parts = []
    for name, command in cli.commands.items():
        context = click.Context(
            command,
            info_name=f"fluxbase-aichat {name}",
            max_content_width=90,
            terminal_width=90,
            **cli.context_settings,
        )
        parts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def _source(app: Any, name: str, source: list[str]) -> None:  # noqa: ARG001 - as Sphinx calls it
    if name == "command_line":
        source[0] = source[0].replace("<!-- the commands -->", help_of_commands())


def setup(app: Any) -> None:
    """Have docstrings rewritten before napoleon reads them, and the commands' help put in."""
    app.connect("autodoc-process-docstring", _docstring, priority=100)
    app.connect("source-read", _source)
