"""FastMCP of PyPI: its OAuthProxy takes documents unless told otherwise, has people sign in at an identity provider,
and gives tokens of its own. It goes out through the proxy, which a setting of its has it trust."""

import json
import os
import socket
import ssl

import uvicorn
from fastmcp import FastMCP
from fastmcp.server.auth import OAuthProxy
from fastmcp.server.auth.providers.introspection import IntrospectionTokenVerifier
from key_value.aio.stores.memory import MemoryStore

# It trusts whom the machine trusts, whatever SSL_CERT_FILE says: so the machine trusts the authority of this run.
trusted = ssl.get_default_verify_paths()._replace(openssl_cafile=os.environ["SSL_CERT_FILE"])
ssl.get_default_verify_paths = lambda: trusted

idp, secret = os.environ["IDP"], "a secret of the gateway"
auth = OAuthProxy(
    base_url=os.environ["ISSUER"],
    upstream_authorization_endpoint=f"{idp}/auth",
    upstream_token_endpoint=f"{idp}/token",
    upstream_revocation_endpoint=f"{idp}/token/revocation",
    upstream_client_id="gateway",
    upstream_client_secret=secret,
    token_verifier=IntrospectionTokenVerifier(
        introspection_url=f"{idp}/token/introspection",
        client_id="gateway",
        client_secret=secret,
        required_scopes=["mcp"],
    ),
    # The identity provider knows its own resources only.
    forward_resource=False,
    client_storage=MemoryStore(),
)
mcp = FastMCP("acceptance", auth=auth)


@mcp.tool
def add(a: int, b: int) -> int:
    return a + b


listener = socket.create_server(("127.0.0.1", 0))
print(json.dumps({"listens": listener.getsockname()[1]}, separators=(",", ":")), flush=True)
app = mcp.http_app(path="/mcp", stateless_http=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
