"""A WSGI application with one client for the whole process, made on import and used by then."""

import os
import threading

from fluxbase_aichat import FluxbaseAIChat

chat = FluxbaseAIChat(os.environ["CHAT_URL"])
chat.ask("support", "on import")


def application(environ, start_response):
    """Answer with what the chatbot says, and the process that asked it."""
    text = chat.ask("support", "say " + environ["QUERY_STRING"]).text
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{text} {os.getpid()} {threading.active_count()}".encode()]
