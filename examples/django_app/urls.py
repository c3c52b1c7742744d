"""Which view answers what."""

from django.urls import path
from django.views.static import serve

from examples.chat_page.web import STATIC

from . import views

urlpatterns = [
    path("", views.page),
    path("sign-in", views.sign_in),
    path("sign-out", views.sign_out),
    path("new", views.new),
    path("open", views.open_past),
    path("ask", views.ask),
    path("history", views.history),
    # Two small files; a larger site leaves that to its web server.
    path("static/<path:path>", serve, {"document_root": STATIC}),
]
handler404 = "examples.django_app.views.not_found"
handler500 = "examples.django_app.views.failed"
