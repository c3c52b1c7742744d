"""Makes docs/web_app.png: examples/flask_app in headless Chromium, while an answer streams.

python docs/make_web_app_png.py
"""

# ruff: noqa: S101 - a script
from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the browser is the tests'

from browsers import Chromium  # noqa: E402


def main() -> None:
    """Ask, ask again, and take the picture before the second answer is whole."""
    application = subprocess.Popen(
        [sys.executable, "-m", "examples.flask_app", "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with application, tempfile.TemporaryDirectory() as profile:
        assert application.stdout is not None
        try:
            url = application.stdout.readline().split()[0]
            with Chromium(Path(profile)) as browser:
                show(browser, url)
        finally:
            application.terminate()


def show(browser: Chromium, url: str) -> None:
    """Do what a person does."""
    browser.open(url)
    browser.until("document.body.dataset.state === 'signed-out'")
    browser.type("#email", "ann@example.com")
    browser.type("#password", "ann-password\n")
    browser.until("document.body.dataset.state === 'ready'")
    browser.type("#question", "Show me the top 5 users by order count\n")
    browser.until("document.querySelectorAll('.text').length === 2")
    browser.until("document.body.dataset.state === 'ready'")
    browser.type("#question", "And by revenue?\n")
    browser.until("document.querySelectorAll('.text')[3]?.textContent.includes('After')")
    (ROOT / "docs" / "web_app.png").write_bytes(browser.picture())


if __name__ == "__main__":
    main()
