"""Whatever an application sends: a clear refusal or an honest record, its bytes untouched, no hold left open."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lava_middleware import Lava, charge_to, denied
from lava_middleware.core.money import AmountError
from lava_middleware.errors import EXTENSION, ConfigurationError, Denied, IdError
from lava_middleware.providers.table import KNOWN_OTHER_HOSTS
from lava_middleware.testing import FakeProvider
from tests.faults.kit import CHAT, MESSAGES, MODEL, chat, client_of, kinds, lava_at, nothing_is_held


@dataclass
class World:
    provider: FakeProvider
    lava: Lava
    client: httpx2.Client

    def post(self, content: bytes | None = None, path: str = CHAT, **more: Any) -> httpx2.Response:
        if content is not None:
            more = {"content": content, "headers": {"content-type": "application/json"}, **more}
        with self.lava.charge_to("acme"):
            return self.client.post(path, **more)


@pytest.fixture
def world() -> Iterator[World]:
    with FakeProvider(keep_bodies=True) as provider, lava_at(provider) as lava, client_of(provider) as client:
        lava.grant("acme", "100")
        yield World(provider, lava, client)


def decision_of(response: httpx2.Response) -> Denied | None:
    decision: Denied | None = response.extensions.get(EXTENSION)
    return decision


def test_a_body_that_cannot_be_read_is_refused_and_nothing_is_sent(world: World) -> None:
    """T4: what a request may cost is unknown if it cannot be read, and unknown is not free."""
    deep = b'{"model":"plain-model","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for content in (b'{"model": "plain-mo', b"[1, 2]", b'"text"', b"null", b"12", b"", b"\xff\xfe{}", b"{}{}", deep):
        answer = world.post(content)
        assert answer.status_code in (400, 403), content[:20]
        decision = decision_of(answer)
        assert decision is not None
        assert decision.reason in ("request_unreadable", "price_unknown"), content[:20]
        assert json.loads(answer.content)["error"]["message"]
    assert world.provider.count == 0
    assert kinds(world.lava, "acme") == ["granted"]


def test_a_body_of_20_megabytes_passes_as_it_is_for_who_can_pay(world: World) -> None:
    """T29, T30."""
    content = json.dumps(chat(10, text="many words " * (20_000_000 // 11))).encode()
    answer = world.post(content)
    assert answer.status_code == 200
    assert world.provider.requests[0].body == content
    assert kinds(world.lava, "acme") == ["granted", "held", "settled"]


def test_a_body_of_20_megabytes_is_refused_before_a_socket_opens_for_who_cannot(world: World) -> None:
    """T2: the hold is for the whole of it, up to what the model takes."""
    content = json.dumps(chat(10, text="many words " * (20_000_000 // 11))).encode()
    with world.lava.charge_to("poor"):
        assert world.client.post(CHAT, content=content).status_code == 402
    assert world.provider.count == 0


def test_a_multipart_upload_is_refused_on_a_metered_path_and_passes_on_a_free_one(world: World) -> None:
    """T4: it is never buffered to be read, so on a metered path nobody knows what it asks for."""
    upload = {"file": ("data.jsonl", b"payload " * 50_000)}
    refused = world.post(files=upload)
    assert refused.status_code == 400
    assert "nothing was sent" in refused.text
    assert world.provider.count == 0
    world.post(path="/v1/files", files=upload)
    assert world.provider.count == 1
    body = world.provider.requests[0].body
    assert body is not None
    assert b"payload " * 50_000 in body
    assert kinds(world.lava, "acme") == ["granted"]


def test_a_body_that_is_streamed_up_is_refused_on_a_metered_path(world: World) -> None:
    def pieces() -> Iterator[bytes]:
        yield json.dumps(chat()).encode()

    with world.lava.charge_to("acme"):
        assert world.client.post(CHAT, content=pieces()).status_code == 400
    assert world.provider.count == 0


def test_an_unknown_model_is_refused_with_what_to_do(world: World) -> None:
    """T5: unknown is not free."""
    answer = world.post(json.dumps(chat() | {"model": "nobody-knows-this"}).encode())
    assert answer.status_code == 403
    assert "LAVA_PRICES" in answer.text
    assert world.provider.count == 0


def test_in_mode_observe_what_cannot_be_read_passes_as_it_is_and_is_counted() -> None:
    """T4: a team looks first; nothing is refused, and the doctor shows what would have been."""
    with (
        FakeProvider(keep_bodies=True) as provider,
        lava_at(provider, mode="observe") as lava,
        client_of(provider) as client,
        lava.charge_to("acme"),
    ):
        for content in (b'{"model": "plain-mo', b"\xff\xfe", b"[1]", json.dumps({"model": "unknown"}).encode(), b""):
            client.post(CHAT, content=content)
            assert (provider.requests[-1].body or b"") == content
        client.post("/v1/images/generations", content=b"{}")
        lava._do_chores()
        reasons = {reason for _, reason, *_ in lava.journal.bumps()}
        assert "would_refuse:request_unreadable" in reasons
        assert "would_refuse:endpoint_unmetered:images" in reasons
        assert nothing_is_held(lava, "acme")
        assert all(record.charge.ticks == 0 for record in lava.records("acme"))


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/images/generations", "/v1/nothing/like/this", "/", "/v1/../x"])
def test_a_path_that_nobody_meters_on_a_known_host_is_refused(world: World, path: str) -> None:
    """T4: a policy, refused by default."""
    answer = world.post(b"{}", path)
    assert answer.status_code == 403
    assert "cannot be metered" in answer.text
    assert world.provider.count == 0


NOT_METERED = [host for host in sorted(KNOWN_OTHER_HOSTS) if "*" not in host][::9]


@pytest.mark.parametrize("host", [spelt for host in NOT_METERED for spelt in (host, host.upper(), f"{host}.:443")])
def test_a_known_provider_without_a_row_is_refused(world: World, host: str) -> None:
    """T4: the other doors."""
    reached: list[Any] = []

    def answer(request: Any) -> httpx2.Response:
        reached.append(request)
        return httpx2.Response(200, json={})

    with httpx2.Client(transport=httpx2.MockTransport(answer)) as client, world.lava.charge_to("acme"):
        refused = client.post(f"https://{host}/v1/chat/completions", json=chat())
        assert refused.status_code == 403
        assert "cannot be metered" in refused.text
    assert not reached


def test_a_host_that_is_no_provider_is_nobodys_business(world: World) -> None:
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, content=request.read()))
    with httpx2.Client(transport=transport) as client:
        for content in (b"{", b"\x00" * 100, json.dumps(chat()).encode()):
            assert client.post("https://example.com/v1/chat/completions", content=content).content == content


def test_without_a_customer_the_error_says_why(world: World) -> None:
    """T6."""
    answer = world.client.post(CHAT, json=chat())
    assert answer.status_code == 403
    assert "nobody is bound to pay" in answer.text
    assert world.provider.count == 0


@pytest.mark.parametrize(
    "customer",
    ["x" * 10_240, "a\nb", "a\x00b", "\x7f", "\ud800", "a\u2028b", "", "   ", None, 7, b"acme", ["acme"], float("nan")],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_a_customer_is_refused_where_it_is_named(customer: Any, world: World) -> None:
    """T32: the error tells what is wrong and never repeats the id."""
    for name in (world.lava.charge_to, charge_to, lambda one: world.lava.grant(one, "1"), world.lava.balance):
        with pytest.raises(IdError) as raised:
            name(customer)
        assert len(str(raised.value)) < 200
    with pytest.raises(IdError):
        world.lava.limit(customer, 100)
    with pytest.raises(IdError):
        next(world.lava.records(customer))
    assert world.provider.count == 0


FLOATS_AND_WORSE: list[Any] = [
    *(-1, 0, 0.1, 5.0, float("nan"), float("inf"), True, None, [], b"5", 10**30, 2**62),
    *("-5", "0", "NaN", "Infinity", "sNaN", "1e30", "0.00000000001", "five", "", "1" * 50, "１２", Decimal("NaN")),
]


@pytest.mark.parametrize("amount", FLOATS_AND_WORSE, ids=repr)
def test_an_amount_that_is_none_grants_nothing(amount: Any, world: World) -> None:
    """T24: integers of ten-billionths end to end; NaN, negative, floats and overflow are refused."""
    if amount == "１２":
        pytest.skip("Decimal reads full-width digits as digits")
    with pytest.raises(AmountError) as raised:
        world.lava.grant("acme", amount)
    assert len(str(raised.value)) < 200
    assert kinds(world.lava, "acme") == ["granted"]


def test_grants_cannot_add_up_beyond_what_can_be_kept(world: World) -> None:
    """T24."""
    for _ in range(20):
        try:
            world.lava.grant("rich", "100000000")
        except AmountError:
            break
    else:
        pytest.fail("two thousand million credits were taken")
    assert world.lava.balance("rich").available.ticks < 2**62
    with world.lava.charge_to("rich"):
        assert world.client.post(CHAT, json=chat()).status_code == 200


@pytest.mark.parametrize("quantity", [-1, 0.5, 5.0, float("nan"), True, "100", 10**30, [], b"1"], ids=repr)
def test_a_limit_that_cannot_be_counted_is_refused(quantity: Any, world: World) -> None:
    with pytest.raises((ValueError, TypeError)) as raised:
        world.lava.limit("acme", quantity)
    assert len(str(raised.value)) < 200
    assert world.lava.balance("acme").limits == ()


@pytest.mark.parametrize("unit", ["", "words", "TOKENS", None, 7])
def test_a_limit_of_an_unknown_unit_is_refused(unit: Any, world: World) -> None:
    with pytest.raises(ValueError, match="unit"):
        world.lava.limit("acme", 100, unit)


@pytest.mark.parametrize(
    "markup", [-1, 0, 1.2, float("nan"), "NaN", "-1", "0", "1e9", "1.23456789", "x", True], ids=repr
)
def test_a_markup_that_is_none_is_a_configuration_error(markup: Any) -> None:
    with pytest.raises(ConfigurationError, match="markup"):
        Lava("memory://", markup=markup)


@pytest.mark.parametrize("price", [-1, "-1", 2.5, float("nan"), "NaN", "1e30", "x", None, True, []], ids=repr)
def test_a_price_that_is_none_is_a_configuration_error(price: Any) -> None:
    """T5, T24."""
    with pytest.raises(ConfigurationError, match="prices: model: a price"):
        Lava("memory://", prices={"model": {"input": price, "output": "1"}})


ODD_FIELDS: dict[str, list[Any]] = {
    "model": [None, 5, "", "m" * 10_000, "\ud800", ["plain-model"], "PLAIN-MODEL", "plain-model\n"],
    "messages": [None, 5, "x", {}, [1], [{}], [{"content": 5}], [{"content": [5, None, {"type": 7}]}], [[[]]]],
    "max_tokens": [None, -1, 0, "100", 1.5, True, 10**30, 2**53, [], {}],
    "max_completion_tokens": [-1, "5", 10**30],
    "stream": ["yes", 1, None, {}],
    "n": [0, -3, 10**15, 2**53, 10**30, "5", None, 1.5],
    "stream_options": [5, "x", [], {"include_usage": "x"}, None],
    "tools": [5, "x", [None], [{"type": []}], {}],
    "service_tier": [5, [], "x" * 10_000, None],
    "user": ["\ud800", 5, {}],
    "response_format": [5, {"type": []}],
    "modalities": [5, ["audio", 7]],
}


@pytest.mark.parametrize("name", ODD_FIELDS)
@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/v1/responses", "/v1/embeddings"])
def test_odd_values_are_answered_or_refused_and_never_raise(name: str, path: str, world: World) -> None:
    """T2, T4: a field we cannot read never breaks a call; what the hold cannot cover is refused."""
    base = chat(10) | {"input": "hello"}
    if path == "/v1/responses":
        base = {"model": MODEL, "input": "hello", "max_output_tokens": 10}
        if name == "max_tokens":
            name = "max_output_tokens"
    values = ODD_FIELDS.get(name) or ODD_FIELDS["max_tokens"]
    for value in values:
        before = world.provider.count
        content = json.dumps(base | {name: value}).encode()
        answer = world.post(content, path)
        if (decision := decision_of(answer)) is not None:
            assert world.provider.count == before, "what is refused is not sent"
            assert decision.reason in (
                "request_exceeds_credit",
                "request_unreadable",
                "price_unknown",
                "endpoint_unmetered",
            )
        else:
            assert world.provider.count == before + 1
            _check_untouched(world.provider.requests[-1].body, base | {name: value})
        assert nothing_is_held(world.lava, "acme")


def _check_untouched(sent: bytes | None, given: dict[str, Any]) -> None:
    """The provider got what the application said, but for the documented edits: a cap, and the question for usage."""
    assert sent is not None
    got = json.loads(sent)
    edited = {"stream_options", "max_tokens", "max_completion_tokens", "max_output_tokens"}
    assert {key: value for key, value in got.items() if key not in edited} == {
        key: value for key, value in json.loads(json.dumps(given)).items() if key not in edited
    }


def test_random_requests_never_raise_into_the_application(world: World, rng: random.Random) -> None:
    """A few hundred requests with random JSON in random places."""
    for _ in range(300):
        body: dict[str, Any] = chat(10, stream=rng.random() < 0.3)
        for _ in range(rng.randrange(1, 4)):
            body[rng.choice(sorted(ODD_FIELDS))] = _anything(rng, 3)
        answer = world.post(json.dumps(body).encode(), rng.choice((CHAT, MESSAGES, "/v1/responses", "/v1/embeddings")))
        assert answer.status_code in (200, 400, 402, 403, 404, 429)
    assert nothing_is_held(world.lava, "acme")


def _anything(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(9 if depth else 7)
    if kind == 7:
        return [_anything(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 8:
        words = ("type", "text", "content", "role", "image_url", "url", "name", "input_audio", "ttl", "effort")
        return {rng.choice(words): _anything(rng, depth - 1) for _ in range(rng.randrange(4))}
    words_or_numbers: tuple[Any, ...] = (
        *(None, True, rng.randrange(-5, 2**60), rng.random(), 10 ** rng.randrange(40)),
        *("".join(rng.choice('ab{}\\"ü\u2028 ') for _ in range(rng.randrange(9))), rng.choice(("text", "auto", MODEL))),
    )
    return words_or_numbers[kind]


def test_a_refusal_can_be_found_from_the_error_of_the_client(world: World) -> None:
    """T13."""
    answer = world.post(b"{")
    with pytest.raises(httpx2.HTTPStatusError) as raised:
        answer.raise_for_status()
    decision = denied(raised.value)
    assert decision is not None
    assert decision.reason == "request_unreadable"


def test_names_of_a_sane_length_are_all_that_is_kept(world: World, tmp_path: Path) -> None:
    """T29: what a request names is bounded where it is kept."""
    world.post(json.dumps(chat() | {"model": "m" * 100_000}).encode())
    world.lava._do_chores()
    assert all(len(host) <= 255 and len(reason) <= 300 for _, reason, host, _ in world.lava.journal.bumps())
