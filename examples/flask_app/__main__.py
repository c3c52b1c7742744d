"""Serves the application on this machine, against a dev server of its own.

python -m examples.flask_app
"""

from examples.chat_page.run import run

from .app import create_app

run(create_app)
