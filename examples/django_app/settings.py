"""Django's settings, from the variables that `examples.chat_page.settings` names."""

from typing import Any

from examples.chat_page.settings import Settings

CHAT = Settings.from_env()

SECRET_KEY = CHAT.secret_key
ALLOWED_HOSTS = CHAT.hosts
ROOT_URLCONF = "examples.django_app.urls"
WSGI_APPLICATION = "examples.django_app.wsgi.application"
MIDDLEWARE = [
    "examples.django_app.middleware.Problems",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
CSRF_FAILURE_VIEW = "examples.django_app.views.no_csrf"

SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
# With that prefix no other host of the domain can set it.
SESSION_COOKIE_NAME = "__Host-session" if CHAT.https else "session"
SESSION_COOKIE_AGE = 24 * 3600
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = CHAT.https
# The proxy that does TLS need not say so.
CSRF_TRUSTED_ORIGINS = [f"https://{host}" for host in CHAT.hosts if CHAT.https]

DATA_UPLOAD_MAX_MEMORY_SIZE = 64 * 1024
USE_I18N = False
TIME_ZONE = "UTC"
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "[%(asctime)s] %(levelname)s: %(message)s"}},
    "filters": {
        "ours": {
            "()": "django.utils.log.CallbackFilter",
            "callback": lambda record: record.exc_info is not None,
        }
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        "chat": {"handlers": ["console"], "level": "WARNING"},
        # Of it only what is a mistake of ours: that has a traceback, and the status 500.
        "django.request": {"handlers": ["console"], "level": "ERROR", "filters": ["ours"]},
    },
}
