"""django-oauth-toolkit in as little Django as it takes. The page to sign in is the application's, and has no script;
the one to consent is its own. Who goes out for a document is a setting, which is meant for a proxy."""

import json
import os
import socket
from pathlib import Path

import django
import urllib3
import uvicorn
from django.conf import settings
from django.contrib.auth import get_user_model, login
from django.core.asgi import get_asgi_application
from django.core.management import call_command
from django.http import HttpResponse, HttpResponseRedirect
from django.middleware.csrf import get_token
from django.urls import include, path

issuer = os.environ["ISSUER"]
settings.configure(
    SECRET_KEY="a secret of this run, and of no other",
    ALLOWED_HOSTS=["localhost"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django.contrib.staticfiles",
        "oauth2_provider",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path.home() / "django.sqlite3"}},
    SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https"),
    STATIC_URL="static/",
    LOGIN_URL="/sign-in",
    USE_TZ=True,
    OAUTH2_PROVIDER={
        "CIMD_ENABLED": True,
        "CIMD_METADATA_FETCHER": f"{__name__}.ThroughTheProxy",
        "OIDC_ISS_ENDPOINT": issuer,
        "COMPLIANT_BCP_RFC9700_AUTHZ_RESPONSE_ISS": True,
        "COMPLIANT_BCP_RFC9700_PKCE_METHOD": True,
        "SCOPES": {"mcp": "Use the MCP server", "introspection": "Ask about tokens"},
        "DEFAULT_SCOPES": ["mcp"],
    },
)
django.setup()

from oauth2_provider.cimd import SafeMetadataFetcher  # noqa: E402: it needs the settings
from oauth2_provider.models import get_application_model  # noqa: E402


class ThroughTheProxy(SafeMetadataFetcher):
    def fetch(self, client_id):
        proxy = urllib3.ProxyManager(os.environ["EGRESS_PROXY"], ca_certs=os.environ["SSL_CERT_FILE"])
        return self._read_document(proxy.request("GET", client_id, redirect=False, preload_content=False))


def sign_in(request):
    if request.method == "POST":
        login(request, get_user_model().objects.get(username="somebody"))
        return HttpResponseRedirect(request.GET["next"])
    token = get_token(request)
    return HttpResponse(
        f'<!doctype html><form method="post" action=""><input type="hidden" name="csrfmiddlewaretoken" value="{token}">'
        "<button>Sign in</button></form>"
    )


urlpatterns = [path("sign-in", sign_in), path("", include("oauth2_provider.urls"))]

call_command("migrate", verbosity=0)
get_user_model().objects.create_user("somebody")
get_application_model().objects.create(
    client_id="mcp-server",
    client_secret="a secret of the MCP server",
    client_type="confidential",
    authorization_grant_type="client-credentials",
)
listener = socket.create_server(("127.0.0.1", 0))
print(json.dumps({"listens": listener.getsockname()[1]}, separators=(",", ":")), flush=True)
uvicorn.Server(uvicorn.Config(get_asgi_application(), lifespan="off", log_level="warning")).run(sockets=[listener])
