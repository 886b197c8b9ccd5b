"""An MCP client of the official Python SDK that does what it is told, a line of JSON on standard input each time.

The first line says what to connect to: `url`, as clients know it; `port` on 127.0.0.1, where that is; `ca`, a file;
`mode` of the SDK's Client; and whether there is somebody to `ask`. Where that fails, the next line does. After that
`{"call": METHOD, "params": {…}}` calls a method of the client. It says, a line each: `{"sent": METHOD}` of each
request; `{"question": …}` when it is asked for something, which the next line answers; and in the end of each call
`{"result": …}`, or the `{"error": …}` that the application gets.
"""

import json
import ssl
import sys

import anyio
import anyio.to_thread
import httpx2
import mcp_types as types
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client


def say(**what):
    print(json.dumps(what), flush=True)


async def read():
    line = await anyio.to_thread.run_sync(sys.stdin.readline)
    return json.loads(line) if line else None


class ToEnvoy(httpx2.AsyncHTTPTransport):
    """Speaks to Envoy whatever host is asked for."""

    def __init__(self, port, ca):
        super().__init__(verify=ssl.create_default_context(cafile=ca))
        self.port = port

    async def handle_async_request(self, request):
        if request.content:
            say(sent=json.loads(request.content).get("method"))
        request.extensions["sni_hostname"] = request.url.host
        request.url = request.url.copy_with(host="127.0.0.1", port=self.port)
        return await super().handle_async_request(request)


async def answered(_context, question):
    say(question=question.model_dump(by_alias=True, exclude_none=True))
    return types.ElicitResult(**await read())


async def do(client, call, params):
    result = await getattr(client, call)(**params)
    return result.model_dump(mode="json", by_alias=True, exclude_none=True)


async def serve(http, told):
    """Connects, and then does as it is told; an error where it could not connect."""
    client = Client(
        streamable_http_client(told["url"], http_client=http),
        mode=told["mode"],
        elicitation_callback=answered if told["ask"] else None,
    )
    try:
        async with client:
            say(result={"version": client.protocol_version})
            while line := await read():
                try:
                    say(result=await do(client, line["call"], line["params"]))
                except (MCPError, RuntimeError) as error:
                    say(error=str(error))
    except* MCPError as error:
        # It comes in groups, one in the other, since it ended the tasks of a connection.
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        say(error=str(error))


async def main():
    while told := await read():
        async with httpx2.AsyncClient(transport=ToEnvoy(told["port"], told["ca"]), timeout=60) as http:
            await serve(http, told)


anyio.run(main)
