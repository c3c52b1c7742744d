"""Serves the application on this machine, against a dev server of its own.

python -m examples.django_app
"""

from typing import Any

from examples.chat_page.run import run


def application() -> Any:
    """Import it when its variables are set."""
    from .wsgi import application  # noqa: PLC0415 - Django reads its settings on import

    return application


run(application)
