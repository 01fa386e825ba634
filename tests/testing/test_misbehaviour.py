"""Everything that can go wrong at a provider, on demand, on real sockets."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import httpx2
import pytest

from lava_middleware.testing import FakeProvider, Script, refusing_port

from .asking import chat, claude, data_lines


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def http(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def client(http: Any, provider: FakeProvider) -> Iterator[Any]:
    with http.Client(base_url=provider.url, timeout=5) as opened:
        yield opened


def _ask(client: Any, **more: Any) -> Any:
    return client.post("/v1/chat/completions", json=chat(**more))


def _tokens(body: bytes) -> int:
    return sum(1 for line in data_lines(body) if line != "[DONE]" and line["choices"][0]["delta"].get("content"))


def test_a_stream_that_is_cut_off(http: Any, client: Any, provider: FakeProvider) -> None:
    provider.default = Script(truncate_after=5)
    with client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
        received, error = _read_until_error(answer)
    assert isinstance(error, http.RemoteProtocolError)
    assert _tokens(received) == 5
    provider.wait_idle()
    (served,) = provider.requests
    assert (served.state, served.output_tokens, served.aborted_after) == ("broken", 5, None)


def _read_until_error(answer: Any) -> tuple[bytes, Exception | None]:
    received = b""
    try:
        for data in answer.iter_bytes():
            received += data
    except Exception as error:
        return received, error
    return received, None


def test_a_stream_that_is_reset(http: Any, client: Any, provider: FakeProvider) -> None:
    provider.default = Script(truncate_after=5, truncate_by="reset")
    with pytest.raises(http.ReadError):
        _ask(client, stream=True)


def test_a_body_that_is_cut_in_half(http: Any, client: Any, provider: FakeProvider) -> None:
    provider.default = Script(truncate_after=0)
    with pytest.raises(http.RemoteProtocolError):
        _ask(client)
    provider.wait_idle()
    assert provider.served.output_tokens == 0


def test_an_answer_that_never_begins(http: Any, client: Any, provider: FakeProvider) -> None:
    provider.default = Script(close_before_answer=True)
    with pytest.raises(http.RemoteProtocolError):
        _ask(client)
    provider.default = Script(close_before_answer=True, truncate_by="reset")
    with pytest.raises(http.ReadError):
        _ask(client)
    provider.wait_idle()
    assert [served.status for served in provider.requests] == [None, None]


def test_a_stream_that_stalls_runs_into_the_read_time_out(http: Any, client: Any, provider: FakeProvider) -> None:
    provider.default = Script(stall_after=3)
    with pytest.raises(http.ReadTimeout):
        client.post("/v1/chat/completions", json=chat(stream=True), timeout=0.2)
    provider.wait_idle()
    (served,) = provider.requests
    assert (served.state, served.aborted_after, served.output_tokens) == ("aborted", 3, 3)


def test_a_body_that_stalls_never_comes(http: Any, client: Any, provider: FakeProvider) -> None:
    provider.default = Script(stall_after=0)
    with pytest.raises(http.ReadTimeout):
        client.post("/v1/chat/completions", json=chat(), timeout=0.2)
    provider.wait_idle()
    assert provider.requests[0].aborted_after == 0
    assert provider.served.input_tokens == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_a_stream_that_never_ends_ends_when_the_peer_leaves(client: Any, provider: FakeProvider, path: str) -> None:
    provider.default = Script(endless=True)
    body = {**claude(stream=True), "input": "Hi"}
    received = 0
    with client.stream("POST", path, json=body) as answer:
        for data in answer.iter_bytes():
            received += len(data)
            if received > 100_000:
                break
    provider.wait_idle()
    (served,) = provider.requests
    assert served.state == "aborted"
    assert served.chunks > 100


@pytest.mark.parametrize(
    "body", [b"", b"<html>502</html>", b'{"id": "chatcmpl-1", "cho', b"\xff\xfe\x00", b"data: {nope\n\n"]
)
def test_garbage_is_sent_as_it_is(client: Any, provider: FakeProvider, body: bytes) -> None:
    provider.default = Script(body=body, content_type="text/html")
    for stream in (False, True):
        answer = _ask(client, stream=stream)
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, body, "text/html")
    assert provider.served.output_tokens == 0
    assert provider.requests[0].reported is None


def test_a_wrong_content_type_on_a_right_stream(client: Any, provider: FakeProvider) -> None:
    provider.default = Script(content_type="application/json")
    answer = _ask(client, stream=True)
    assert answer.headers["content-type"] == "application/json"
    assert data_lines(answer.content)[-1] == "[DONE]"


def test_gzip_where_it_is_accepted(client: Any, provider: FakeProvider) -> None:
    provider.default = Script(compress="accepted")
    for stream in (False, True):
        assert _ask(client, stream=stream).headers["content-encoding"] == "gzip"
        plain = client.post("/v1/chat/completions", json=chat(stream=stream), headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
    assert provider.served.output_tokens == 160


def test_gzip_where_it_is_not_accepted(client: Any, provider: FakeProvider) -> None:
    provider.default = Script(compress="always")
    sent = client.build_request(
        "POST", "/v1/chat/completions", json=chat(stream=True), headers={"accept-encoding": "identity"}
    )
    answer = client.send(sent, stream=True)
    raw = b"".join(answer.iter_raw())
    answer.close()
    assert data_lines(gzip.decompress(raw))[-1] == "[DONE]"


def test_each_event_of_a_compressed_stream_can_be_read_at_once(client: Any, provider: FakeProvider) -> None:
    provider.default = Script(compress="always", stall_after=2)
    with client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
        received = b""
        for data in answer.iter_bytes():
            received += data
            if _tokens(received) == 2:
                break


def test_a_stream_in_one_write_and_in_pieces_is_the_same_stream(client: Any, provider: FakeProvider) -> None:
    bodies = []
    for script in (Script(), Script(single_chunk=True), Script(split_bytes=1), Script(split_bytes=700)):
        provider.reset()  # The same serial number, so the same ids.
        provider.default = script
        bodies.append(_created_alike(_ask(client, stream=True).content))
        assert provider.served.output_tokens == 40
    assert len(set(bodies)) == 1


def _created_alike(body: bytes) -> bytes:
    created = str(data_lines(body)[0]["created"]).encode()
    return body.replace(created, b"0")


def test_more_words_in_a_chunk(client: Any, provider: FakeProvider) -> None:
    provider.default = Script(output_tokens=40, tokens_per_chunk=15)
    assert _tokens(_ask(client, stream=True).content) == 3
    assert (provider.served.output_tokens, provider.requests[0].chunks) == (40, 3)


def test_informational_answers_come_first(client: Any, provider: FakeProvider) -> None:
    provider.default = Script(informational=(103, 103))
    assert _ask(client).status_code == 200


def test_a_connection_is_kept_unless_the_script_says_otherwise(client: Any, provider: FakeProvider) -> None:
    assert "connection" not in _ask(client).headers
    streams = {_ask(client).extensions["network_stream"].get_extra_info("client_addr") for _ in range(3)}
    assert len(streams) == 1
    provider.default = Script(keep_alive=False)
    for stream in (False, True):
        answer = _ask(client, stream=stream)
        assert answer.headers["connection"] == "close"
        assert answer.status_code == 200


def test_headers_are_added_or_replaced(client: Any, provider: FakeProvider) -> None:
    provider.default = Script(headers={"X-Request-Id": "mine", "retry-after": "3"})
    headers = _ask(client).headers
    assert (headers["x-request-id"], headers["retry-after"]) == ("mine", "3")


def test_a_port_that_refuses(http: Any) -> None:
    with refusing_port() as port, pytest.raises(http.ConnectError):
        http.get(f"http://127.0.0.1:{port}/")


def test_an_unknown_path_is_not_found_and_takes_no_script(client: Any, provider: FakeProvider) -> None:
    provider.queue(Script(text="kept"))
    assert client.post("/v1/images/generations", json={}).status_code == 404
    assert client.get("/v1/chat/completions/x", headers={"anthropic-version": "1"}).json()["type"] == "error"
    assert _ask(client).json()["choices"][0]["message"]["content"] == "kept"
    assert [served.operation for served in provider.requests] == ["unknown", "unknown", "chat.completions"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"{}", b"[" * 100_000, b'{"model": 1, "messages": []}'])
def test_a_bad_request_is_refused_and_not_served(client: Any, provider: FakeProvider, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings"):
        assert client.post(path, content=body).status_code == 400
    assert provider.served.input_tokens == 0


def test_large_and_chunked_bodies_are_read(client: Any, provider: FakeProvider) -> None:
    text = "word " * 200_000
    body = json.dumps(chat(messages=[{"role": "user", "content": text}])).encode()
    assert client.post("/v1/chat/completions", content=body).json()["usage"]["prompt_tokens"] == 200_000 + 8
    pieces = (body[at : at + 70_000] for at in range(0, len(body), 70_000))
    assert client.post("/v1/chat/completions", content=pieces).json()["usage"]["prompt_tokens"] == 200_000 + 8


def test_what_is_not_http_is_turned_away(provider: FakeProvider) -> None:
    for noise in (b"\x16\x03\x01 hello\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: many\r\n\r\n", b"x" * 70_000):
        with socket.create_connection(("127.0.0.1", int(provider.host.split(":")[1]))) as raw:
            raw.sendall(noise)
            assert raw.recv(100).startswith(b"HTTP/1.1 400 ")
    assert provider.count == 0


def test_expect_continue_is_answered(provider: FakeProvider) -> None:
    body = json.dumps(chat()).encode()
    with socket.create_connection(("127.0.0.1", int(provider.host.split(":")[1]))) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body)
        )
        assert raw.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(body)
        assert raw.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_script_that_contradicts_itself_is_refused() -> None:
    for wrong in ({"text": "a", "output_tokens": 1}, {"tokens_per_chunk": 0}, {"endless": True, "single_chunk": True}):
        with pytest.raises(ValueError, match=r"either|at least|endless"):
            Script(**wrong)
