"""Signs in with an e-mail address and a password, and keeps the access token fresh.

    FLUXBASE_EMAIL=ann@example.com FLUXBASE_PASSWORD=ann-password python examples/sign_in.py

`FLUXBASE_URL` says where. These two are of the server of `fluxbase-aichat serve`.
"""

from __future__ import annotations

import os
import sys

from fluxbase_aichat import AuthenticationError, FluxbaseAI, FluxbaseAIChat, PasswordLogin


def main() -> None:
    """Ask over the chat and over REST, with one login for both."""
    url = os.environ["FLUXBASE_URL"]
    login = PasswordLogin(url, os.environ["FLUXBASE_EMAIL"], os.environ["FLUXBASE_PASSWORD"])
    try:
        with FluxbaseAIChat(url, token=login) as chat:
            print(chat.ask("sql-assistant", "How many users are there?", timeout=120))
        print(FluxbaseAI(url, token=login).list_conversations().total, "stored conversations")
    except AuthenticationError as error:
        sys.exit(f"not signed in: {error}")


if __name__ == "__main__":
    main()
