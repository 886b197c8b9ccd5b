"""gotauth: its OAuth server takes documents unless told otherwise. The page to sign in is the application's, and has no
script."""

import json
import os
import socket
from asyncio.selector_events import BaseSelectorEventLoop
from contextlib import asynccontextmanager
from html import escape
from urllib.parse import urlsplit

import uvicorn
from gotauth import GotAuth
from gotauth.plugins.oauth_provider import oauth_provider
from gotauth.storage.memory import memory_adapter
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.routing import Mount, Route

# It looks a document's address up itself, takes none that is not public, and connects to that one: no proxy fits in. So
# the routes have a public address here, where nothing is any more (RFC 7526), and what is for it comes to Envoy.
ROUTES_ADDRESS = "192.88.99.1"
looked_up, connected = socket.getaddrinfo, BaseSelectorEventLoop.sock_connect


def getaddrinfo(host, *args, **kwargs):
    is_route = isinstance(host, str) and host.endswith(".gateway.example")
    return looked_up(ROUTES_ADDRESS if is_route else host, *args, **kwargs)


async def sock_connect(loop, sock, address):
    if address[:2] == (ROUTES_ADDRESS, 443):
        address = ("127.0.0.1", int(os.environ["ENVOY_PORT"]))
    await connected(loop, sock, address)


socket.getaddrinfo, BaseSelectorEventLoop.sock_connect = getaddrinfo, sock_connect

PERSON = {"email": "somebody@example.com", "password": "a password of somebody"}
issuer = urlsplit(os.environ["ISSUER"])
auth = GotAuth(
    database=memory_adapter(),
    secret="a secret of this run, and of no other",
    base_url=f"{issuer.scheme}://{issuer.netloc}",
    base_path=issuer.path,
    email_password={"require_email_verification": False},
    rate_limit=False,
    plugins=[
        oauth_provider(scopes=["openid", "offline_access", "mcp"], resources=[os.environ["RESOURCE"]], mcp=True),
    ],
)


async def sign_in(request):
    if request.method == "GET":
        action = escape(str(request.url))
        return HTMLResponse(f'<!doctype html><form method="post" action="{action}"><button>Sign in</button></form>')
    signed_in = await auth.api.call("sign_in_email", PERSON, as_response=True)
    response = RedirectResponse(request.query_params["callback_url"], 303)
    for cookie in signed_in.cookies:
        response.set_cookie(
            cookie.name, cookie.value, cookie.max_age, path=cookie.path, secure=cookie.secure, httponly=cookie.http_only
        )
    return response


@asynccontextmanager
async def with_the_person(_app):
    await auth.api.call("sign_up_email", PERSON)
    yield


app = Starlette(
    routes=[
        Route("/sign-in", sign_in, methods=["GET", "POST"]),
        Mount(issuer.path, auth.asgi()),
        Mount("/", auth.well_known()),
    ],
    lifespan=with_the_person,
)
listener = socket.create_server(("127.0.0.1", 0))
print(json.dumps({"listens": listener.getsockname()[1]}, separators=(",", ":")), flush=True)
uvicorn.Server(uvicorn.Config(app, loop="asyncio", log_level="warning")).run(sockets=[listener])
