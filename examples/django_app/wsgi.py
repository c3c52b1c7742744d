"""The application for a web server; what it does is in `views`.

export FLUXBASE_URL=... CHAT_SECRET_KEY=... CHAT_DATA=... CHAT_HOSTS=... CHAT_HTTPS=1
gunicorn --preload --workers 2 --threads 16 examples.django_app.wsgi
"""

import os
from importlib import import_module

from django.core.wsgi import get_wsgi_application

__all__ = ["application"]

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "examples.django_app.settings")
application = get_wsgi_application()
# Before the first request, and before gunicorn forks: what is wrong is told at the start.
import_module("examples.django_app.views")
