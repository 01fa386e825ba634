"""A mock transport that answers as the stand-in does, for unit tests without a socket."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import httpx2
import openai
import pytest

from lava_middleware.testing import Script, canned_transport

from .asking import chat, data_lines

URL = "https://api.openai.com/v1/chat/completions"
LIBRARIES = pytest.mark.parametrize("http", [httpx, httpx2], ids=["httpx", "httpx2"])


@LIBRARIES
@pytest.mark.parametrize("prebuilt", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_a_script_is_answered_sync_and_async(http: Any, prebuilt: bool, stream: bool) -> None:
    transport = canned_transport(Script(output_tokens=5), prebuilt=prebuilt, library=http.__name__)

    async def ask() -> bytes:
        async with http.AsyncClient(transport=transport) as client:
            answer = await client.post(URL, json=chat(stream=stream))
            return bytes(answer.content)

    with http.Client(transport=transport) as client:
        answer = client.post(URL, json=chat(stream=stream))
    assert len(answer.content) == len(asyncio.run(ask()))
    if stream:
        assert data_lines(answer.content)[-1] == "[DONE]"
    else:
        assert answer.json()["usage"]["completion_tokens"] == 5


@LIBRARIES
def test_a_prebuilt_answer_has_its_content_before_it_is_read(http: Any) -> None:
    request = http.Request("POST", URL, json=chat())
    assert canned_transport(library=http.__name__).handle_request(request).content
    with pytest.raises(http.ResponseNotRead):
        _ = canned_transport(prebuilt=False, library=http.__name__).handle_request(request).content


@LIBRARIES
@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ({"a": 1}, "application/json"),
        ("data: 1\n\n", "text/event-stream; charset=utf-8"),
        (b"\xff", "application/json"),
    ],
)
def test_anything_else_is_sent_as_it_is(http: Any, reply: Any, kind: str) -> None:
    transport = canned_transport(reply, status=418, headers={"X-Mine": "1"}, library=http.__name__)
    with http.Client(transport=transport) as client:
        answer = client.get(URL)
    assert (answer.status_code, answer.headers["content-type"], answer.headers["x-mine"]) == (418, kind, "1")


def test_the_sdk_takes_it() -> None:
    with httpx2.Client(transport=canned_transport(Script(text="Hello."), library="httpx2")) as http:
        client = openai.OpenAI(api_key="any", http_client=http)
        assert client.chat.completions.create(**chat()).choices[0].message.content == "Hello."
