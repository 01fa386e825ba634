"""What README.md shows works as it stands there, and its tables say what the code says.

`python tests/test_readme.py` writes the generated tables anew.
"""

from __future__ import annotations

import ast
import hashlib
import hmac
import importlib.util
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest

from lava_middleware import Amount, Conflict, Lava, LavaMiddleware, charge_to, current
from lava_middleware.errors import REASONS, Denied
from lava_middleware.inbound import WORDS
from lava_middleware.settings import EXAMPLES, Settings
from lava_middleware.testing import FakeProvider, Script

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"

RUN_HERE = {
    # section → how many blocks of Python it has. Each is run by the test named after the section.
    "Quickstart": 1,
    "Observe first, then enforce": 1,
    "Who pays": 5,
    "Django, Flask and WSGI": 3,
    "Prices and margin": 3,
    "Plans and limits": 1,
    "Runs and quotes": 2,
    "Everything else": 1,
    "A paid invoice becomes a grant": 1,
    "Your own tests": 2,
    "What a refusal looks like": 1,
    "Where records go": 1,
}


def sections(text: str | None = None) -> dict[str, str]:
    """Title → text of each section."""
    parts = re.split(r"^## (.+)$", README.read_text() if text is None else text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks(section: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", sections()[section], re.MULTILINE | re.DOTALL)


def shown(language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL))


def run(code: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """The names after the block has run among these names, as a module of its own."""
    found: dict[str, Any] = {"__name__": "readme", **(names or {})}
    exec(compile(code, "README.md", "exec"), found)
    return found


# The tables ----------------------------------------------------------------------------------------------------------


def settings_table() -> str:
    explained = _docstrings_of_fields(Settings)
    rows = ["| setting | is | default | what for |", "| --- | --- | --- | --- |"]
    for field in fields(Settings):
        must, example = EXAMPLES[field.name]
        if not re.search(rf"\b{re.escape(example)}\b", must) and f"`{example}`" != _default(field):
            must = f"{must}, such as `{example}`"
        rows.append(f"| `{field.name}` | {must} | {_default(field)} | {explained[field.name]} |")
    return "\n".join(rows)


def _default(field: Any) -> str:
    if field.name == "ledger":
        return "`sqlite:///lava.db`"
    if field.default is MISSING or field.default is None:
        return ""
    value = field.default
    return f"`{str(value).lower() if isinstance(value, bool) else f'{value:g}' if isinstance(value, float) else value}`"


def _docstrings_of_fields(owner: type) -> dict[str, str]:
    """Field → the sentence below it."""
    tree = ast.parse((ROOT / "src" / "lava_middleware" / "settings.py").read_text())
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner.__name__).body
    found = {}
    for above, below in itertools.pairwise(body):
        if isinstance(above, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(above.target, ast.Name)
            found[above.target.id] = " ".join(str(below.value.value).split())
    return found


WHEN = {
    # reason → when. The words for people who read the README; a reason that is missing here fails the test.
    "insufficient_credit": "nothing, or not enough, is left",
    "request_exceeds_credit": "a smaller request would fit; the refusal says how small",
    "credit_on_hold": "open calls hold the credit, and none gave it back within `hold_wait_s`",
    "limit_reached": "a limit of the customer's, with its name, what is used, and when it resets",
    "customer_suspended": "the operator has suspended the customer",
    "model_not_in_plan": "the customer's plan does not include the model",
    "meter_not_in_plan": "the customer's plan does not include the meter",
    "run_ended": "the run that the call belongs to has ended or expired",
    "customer_unknown": "nobody was named, or the account is unknown and `unknown_accounts` is `refuse`",
    "price_unknown": "the model has no price",
    "endpoint_unmetered": "the endpoint has no meter",
    "request_unreadable": "the request is not in the provider's form, or its body is a stream",
    "request_ended": "its inbound request had ended, and `after_request` is `refuse`",
    "ledger_unavailable": "the ledger cannot be asked, and `on_ledger_outage` is `closed`",
}
RAISED = {
    # status → what the openai and anthropic SDKs raise
    400: "`BadRequestError`",
    402: "`APIStatusError` (anthropic: `PaymentRequiredError`)",
    403: "`PermissionDeniedError`",
    429: "`RateLimitError`",
}


def reasons_table() -> str:
    rows = ["| `code` | when | SDK raises | your client sees |", "| --- | --- | --- | --- |"]
    for reason, rule in REASONS.items():
        rows.append(f"| `{reason}` | {WHEN[reason]} | {rule.outbound} {RAISED[rule.outbound]} | {rule.inbound} |")
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {"reasons": reasons_table, "settings": settings_table}


def with_tables(text: str) -> str:
    for name, table in TABLES.items():
        pattern = rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(
            pattern, lambda found, made=table: f"{found[1]}{made()}\n{found[2]}", text, flags=re.DOTALL
        )
        assert count == 1, f"README.md has no place for the table {name}"
    return text


def test_its_tables_are_what_the_code_says() -> None:
    assert with_tables(README.read_text()) == README.read_text(), "run: python tests/test_readme.py"


def test_every_reason_is_explained() -> None:
    assert set(WHEN) == set(REASONS) == set(WORDS)


def test_the_sdks_raise_what_the_table_says() -> None:
    openai, anthropic, httpx2 = (pytest.importorskip(name) for name in ("openai", "anthropic", "httpx2"))
    for module, status in ((module, status) for module in (openai, anthropic) for status in RAISED):
        client = (module.OpenAI if module is openai else module.Anthropic)(api_key="any")
        response = httpx2.Response(status, request=httpx2.Request("POST", "https://example.com"))
        raised = type(client._make_status_error("no", body=None, response=response)).__name__
        assert raised in RAISED[status]


# Its shape -----------------------------------------------------------------------------------------------------------


def test_every_block_of_python_is_run_by_a_test() -> None:
    found = {title: len(blocks(title)) for title in sections()}
    assert {title: count for title, count in found.items() if count} == RUN_HERE
    assert README.read_text().count("```python") == sum(RUN_HERE.values())


def test_the_first_two_commands_are_the_demo_and_the_tests() -> None:
    commands = re.findall(r"^\$ (.*?)(?:  .*)?$", shown("console"), re.MULTILINE)
    assert [command.strip() for command in commands[:2]] == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo:", makefile, re.MULTILINE)
    assert re.search(r"^test:", makefile, re.MULTILINE)


def test_the_extras_it_names_exist() -> None:
    named = set(re.findall(r"lava-middleware\[([a-z,]+)\]", README.read_text()))
    assert named <= set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def test_each_guarantee_has_its_test_and_its_limit() -> None:
    points = re.findall(
        r"^\d\. (\*\*G\d\.\*\*.*?)(?=^\d\. |^After)", sections()["Guarantees"], re.DOTALL | re.MULTILINE
    )
    assert [point[2:4] for point in points] == [f"G{number}" for number in range(1, 9)]
    for point in points:
        assert "*Limit:*" in point
        paths = re.findall(r"`(tests/[^`]+)`", point)
        assert paths
        assert [path for path in paths if not (ROOT / path).exists()] == []


def test_its_links_and_paths_exist() -> None:
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text()):
        assert (ROOT / path).exists(), path


def test_no_line_is_wider_than_a_page() -> None:
    """Tables apart, and lines of commands."""
    lines = [line for line in README.read_text().splitlines() if not line.startswith(("|", "$"))]
    assert [line for line in lines if len(line) > 120] == []


# The world its blocks run in -----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty directory, without anybody's settings."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("LAVA_", "OPENAI_", "ANTHROPIC_")):
            monkeypatch.delenv(name)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProvider]:
    """The stand-in, named in the environment as the README does."""
    with FakeProvider() as provider:
        monkeypatch.setenv("LAVA_HOSTS", f"{provider.host}=openai,anthropic")
        monkeypatch.setenv("OPENAI_BASE_URL", provider.openai_base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "any")
        yield provider


@pytest.fixture
def lava(provider: FakeProvider) -> Iterator[Lava]:
    with Lava("sqlite:///lava.db") as lava:
        yield lava.instrument()


@pytest.fixture
def client(provider: FakeProvider) -> Iterator[Any]:
    with pytest.importorskip("openai").OpenAI() as client:
        yield client


QUESTION = [{"role": "user", "content": "hello"}]


def asking(client: Any) -> Callable[..., str]:
    def ask(question: object = None) -> str:
        answer = client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION)
        return str(answer.choices[0].message.content)

    return ask


def lava_command(*words: str, **environment: str) -> str:
    """What a command of lava says. It must succeed."""
    said = subprocess.run(
        [sys.executable, "-m", "lava_middleware", *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    return said.stdout


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(command: list[str], port: int, **environment: str) -> Iterator[str]:
    """A server in a process of its own, and its address."""
    url = f"http://127.0.0.1:{port}"
    with (
        Path("server.log").open("wb") as log,
        subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log) as running,
    ):
        try:
            deadline = time.monotonic() + 60
            while True:
                assert running.poll() is None, Path("server.log").read_text()
                assert time.monotonic() < deadline, "the server did not start"
                try:
                    httpx.get(f"{url}/openapi.json")
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            yield url
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(30)


# Its blocks ----------------------------------------------------------------------------------------------------------


def test_the_quickstart_serves_a_streamed_call() -> None:
    """Copied out of the README, with its own commands; only ports are others, for they may be taken."""
    pytest.importorskip("uvicorn")
    Path("app.py").write_text(blocks("Quickstart")[0])
    to_try, to_serve, *_ = (block.splitlines() for block in blocks("Quickstart", "console"))
    assert to_try[0] == "$ python -m lava_middleware.testing &"
    stand_in = [sys.executable, *shlex.split(to_try[0].removeprefix("$ ").removesuffix(" &"))[1:], "--port", "0"]
    with subprocess.Popen(stand_in, stdout=subprocess.PIPE, text=True) as provider:
        try:
            assert provider.stdout is not None
            place = provider.stdout.readline().split()[-1].split("/")[2]
            exported = dict(word.split("=", 1) for word in shlex.split(to_try[1].replace("127.0.0.1:8811", place))[2:])
            assert to_serve[0] == "$ uvicorn app:app"
            port = free_port()
            serve = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
            with serving(serve, port, **exported) as url:
                path = shlex.split(to_serve[1])[-1].removeprefix("http://127.0.0.1:8000")
                with httpx.stream("GET", url + path, timeout=30) as answer:
                    assert answer.status_code == 200
                    pieces = list(answer.iter_text())
            assert len(pieces) > 5
            assert "".join(pieces).startswith("A ledger is")
            statement = lava_command(*shlex.split(to_serve[2])[2:])
        finally:
            provider.send_signal(signal.SIGINT)
    assert "key welcome" in statement
    assert "40 out" in statement


def test_four_lines_of_the_quickstart_are_ours() -> None:
    lines = [line for line in blocks("Quickstart")[0].splitlines() if "lava" in line.lower()]
    assert len(lines) == 4
    assert "Four lines are new" in sections()["Quickstart"]


def test_observe_refuses_nothing_and_tells_the_doctor(provider: FakeProvider, client: Any) -> None:
    found = run(*blocks("Observe first, then enforce"), {"Lava": Lava})
    with found["lava"] as lava:
        lava.instrument()
        ask = asking(client)
        with lava.charge_to("acme"):
            ask()
        ask()
        assert provider.count == 2
        (record,) = lava.records("acme")
        assert lava.balance("acme").debt.ticks == 0
    assert record.kind == "reported"
    report = lava_command("doctor")
    assert "would_refuse:insufficient_credit" in report
    assert "would_refuse:customer_unknown" in report


class SessionMiddleware:
    """Stands for starlette's, which wants a package for its signatures."""

    def __init__(self, app: Any, secret_key: str) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app({**scope, "session": {"account": "acme"}}, receive, send)


def test_a_function_of_the_request_says_who_pays(lava: Lava, client: Any) -> None:
    fastapi, testclient = pytest.importorskip("fastapi"), pytest.importorskip("fastapi.testclient")
    lava.grant("acme", "1.00")
    app = fastapi.FastAPI()
    app.get("/ask")(asking(client))
    run(
        blocks("Who pays")[0],
        {"app": app, "lava": lava, "LavaMiddleware": LavaMiddleware, "SessionMiddleware": SessionMiddleware}
        | {"secret": "any"},
    )
    assert testclient.TestClient(app).get("/ask").status_code == 200
    assert [record.facts["basis_of_customer"] for record in lava.records("acme")] == ["resolver"]


@dataclass
class User:
    account: str
    id: str


def test_identify_says_who_pays(lava: Lava, client: Any) -> None:
    fastapi, testclient = pytest.importorskip("fastapi"), pytest.importorskip("fastapi.testclient")
    lava.grant("acme", "1.00")
    found = run(
        blocks("Who pays")[1],
        {"Annotated": Annotated, "Depends": fastapi.Depends, "FastAPI": fastapi.FastAPI, "User": User}
        | {"current_user": lambda: User("acme", "u-7"), "lava": lava, "LavaMiddleware": LavaMiddleware},
    )
    found["app"].get("/ask")(asking(client))
    assert testclient.TestClient(found["app"]).get("/ask").status_code == 200
    (record,) = lava.records("acme")
    assert (record.facts["basis_of_customer"], record.facts["user"]) == ("identified", "u-7")


def test_charge_to_and_unbilled_say_who_pays(lava: Lava, client: Any, provider: FakeProvider) -> None:
    lava.grant("acme", "1.00")
    found = run(blocks("Who pays")[2], {"lava": lava, "client": client, "question": QUESTION})
    found["nightly_report"]()
    assert provider.count == 3
    report, embedding = lava.records("acme")
    assert embedding.facts["tags"] == [["feature", "import"]]
    assert report.model == "gpt-4o-mini"


def test_bind_context_hands_the_customer_to_a_pool(lava: Lava, client: Any) -> None:
    lava.grant("acme", "1.00")
    ask = asking(client)
    with lava.charge_to("acme"):
        found = run(
            blocks("Who pays")[3], {"ThreadPoolExecutor": ThreadPoolExecutor, "ask": ask, "questions": ["a", "b", "c"]}
        )
    assert len(found["answers"]) == len(list(lava.records("acme"))) == 3


def test_current_shows_what_the_request_has_cost(lava: Lava, client: Any) -> None:
    fastapi, testclient = pytest.importorskip("fastapi"), pytest.importorskip("fastapi.testclient")
    lava.grant("acme", "1.00")
    app = fastapi.FastAPI()
    app.add_middleware(LavaMiddleware, lava=lava, customer=lambda request: "acme")
    ask = asking(client)

    async def ask_twice() -> None:
        ask()
        ask()

    run(blocks("Who pays")[4], {"app": app, "ask_twice": ask_twice})
    answer = testclient.TestClient(app).get("/cost").json()
    assert answer == {"calls": "2", "charged": "0.0000504"}
    assert current.__doc__ is not None


def test_djangos_settings_pass_its_checks_and_serve(tmp_path: Path) -> None:
    """In a process of its own: Django is configured once in each."""
    pytest.importorskip("django")
    block = blocks("Django, Flask and WSGI")[0].replace("/var/lib/shop", str(tmp_path))
    Path("shop.py").write_text(
        "INSTALLED_APPS, MIDDLEWARE, urlpatterns, ROOT_URLCONF, SECRET_KEY = [], [], [], __name__, 'any'\n"
        f"{block}SILENCED_SYSTEM_CHECKS = ['lava_middleware.W003']\n"
    )
    words = ["check", "--fail-level", "WARNING"], ["lava", "grant", "acme", "5.00"], ["lava", "balance", "acme"]
    manage = "from django.core.management import execute_from_command_line as run\n"
    manage += "".join(f"run({['manage.py', *line]!r})\n" for line in words)
    manage += "from django.test import Client; Client().get('/nowhere', headers={'host': 'localhost'})\n"
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "shop", "PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, "-c", manage], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout
    assert "available  5.00" in done.stdout
    assert (tmp_path / "lava.db").exists()


def test_flask_and_wsgi_serve_their_customers(lava: Lava, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flask")
    monkeypatch.setenv("LAVA_LEDGER", "memory://")
    _, flask_block, wsgi_block = blocks("Django, Flask and WSGI")
    app = run(flask_block)["app"]
    app.secret_key = "of the tests"
    app.get("/ask")(asking(client))
    assert app.test_client().get("/ask").status_code == 403
    with app.test_client() as signed_in:
        with signed_in.session_transaction() as session:
            session["account"] = "acme"
        assert signed_in.get("/ask").status_code == 402
    app.extensions["lava"].close()

    def plain(environ: Any, start_response: Any) -> Any:
        asking(client)()
        return []

    statuses: list[str] = []
    application = run(wsgi_block, {"application": plain})["application"]
    body = application({"shop.account": "acme"}, lambda status, *_: statuses.append(status))
    assert json.loads(b"".join(body))["code"] == "insufficient_credit"
    assert statuses == ["402 Payment Required"]
    application.lava.close()


def test_prices_and_a_markup_as_keywords_and_as_a_file(provider: FakeProvider, capsys: Any) -> None:
    keywords = run(blocks("Prices and margin")[0], {"Lava": Lava})["lava"]
    Path("prices.toml").write_text(blocks("Prices and margin", "toml")[0])
    with keywords, Lava("memory://", markup="1.20", prices="prices.toml") as file:
        for lists, model in ((("openai",), "our-model"), (("openai",), "gpt-4o"), (("openai",), "our-free-model")):
            given, read = keywords.book.find(lists, model), file.book.find(lists, model)
            assert given is not None
            assert read is not None
            assert given.rates == read.rates
        keywords.instrument().grant("acme", "1.00")
        answer = httpx.post(
            f"{provider.openai_base_url}/chat/completions", json={"model": "our-model", "messages": QUESTION}
        )
        assert answer.status_code == 403  # nobody was named
        with keywords.charge_to("acme"):
            httpx.post(
                f"{provider.openai_base_url}/chat/completions", json={"model": "our-model", "messages": QUESTION}
            )
        run(blocks("Prices and margin")[1], {"lava": keywords})
        (record,) = keywords.records("acme")
        cost = (record.usage.input_tokens * Decimal("0.80") + record.usage.output_tokens * Decimal("2.40")) / 1_000_000
        assert record.cost.decimal == cost
        assert record.charge.decimal == cost * Decimal("1.20")
        assert str(record.charge) in capsys.readouterr().out


def test_meters_charge_what_they_say(provider: FakeProvider) -> None:
    with run(blocks("Prices and margin")[2], {"Lava": Lava})["lava"] as lava:
        tokens = lava.report("acme", meter="bulk", quantity=5_000_000, request_id="month")
        assert tokens.charge == Amount.of(17)
        assert lava.report("acme", meter="audio", quantity=90, request_id="talk").charge == Amount.of("0.009")
        lava.grant("acme", "50.00")
        lava.instrument()
        with lava.charge_to("acme"):
            httpx.post(
                f"{provider.openai_base_url}/chat/completions", json={"model": "gpt-4o-mini", "messages": QUESTION}
            )
        record = next(lava.records("acme"))
        usage = record.usage
        assert record.facts["meter"] == "fast"
        assert record.charge.decimal == Decimal(usage.input_tokens + 4 * usage.output_tokens) / 1_000_000


def test_a_plan_and_its_limits(lava: Lava) -> None:
    run(blocks("Plans and limits")[0], {"lava": lava})
    balance = lava.balance("acme")
    assert (balance.plan, balance.balance, balance.available) == ("pro", Amount.of("20.00"), Amount.of("30.00"))
    assert {(one.quantity, one.unit, one.window) for one in balance.limits} == {
        (100_000, "tokens", "month"),
        (2 * 10**10, "credits", "day"),
        (5, "open_calls", "lifetime"),
    }


def test_the_catalogue_says_what_the_text_says(tmp_path: Path) -> None:
    Path("lava.toml").write_text(blocks("One catalogue", "toml")[0])
    assert "pro" in lava_command("check", "lava.toml")
    with Lava("memory://", catalogue="lava.toml") as lava:
        balance = lava.subscribe("acme", "pro")
        assert (balance.plan, balance.available) == ("pro", Amount.of("25.00"))
        assert {one.quantity for one in balance.limits} >= {2_000_000}
        assert lava.report("somebody", meter="pages", quantity=3, request_id="scan").charge == Amount.of("0.03")
        assert lava.balance("somebody").plan == "free"


def test_a_run_and_a_quote(lava: Lava, client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lava.grant("acme", "1.00")
    run(blocks("Runs and quotes")[0], {"lava": lava, "charge_to": charge_to, "agent": asking(client)})
    (record,) = lava.records("acme")
    assert capsys.readouterr().out.strip() == str(record.charge)
    assert len(record.facts["runs"]) == 1
    quote = run(blocks("Runs and quotes")[1], {"lava": lava})["quote"]
    assert quote.affordable
    assert quote.steps_fit > 100


def test_everything_else_is_billed_as_well(provider: FakeProvider) -> None:
    with Lava("memory://", meters={"pages": {"rates": {"pages": "0.01"}}}) as lava:
        lava.grant("acme", "1.00")
        yesterday = datetime.now(UTC) - timedelta(days=1)
        run(
            blocks("Everything else")[0],
            {"lava": lava, "yesterday": yesterday, "convert": lambda document: 31, "document": b""},
        )
        charges = [record.charge for record in lava.records("acme")]
        assert charges[:2] == [Amount.of("-0.02"), Amount.of("0.31")]
        assert charges[3:] == [Amount.of("0.30"), Amount.of("0.12")]


def stripe_event(cents: int, event_id: str = "evt_1", secret: str = "whsec_any", age_s: int = 0) -> dict[str, Any]:
    """A signed delivery, as https://docs.stripe.com/webhooks describes it."""
    invoice = {"amount_paid": cents, "metadata": {"account": "acme"}}
    body = json.dumps({"id": event_id, "type": "invoice.paid", "data": {"object": invoice}}).encode()
    signed_at = int(time.time()) - age_s
    signature = hmac.new(secret.encode(), f"{signed_at}.".encode() + body, hashlib.sha256).hexdigest()
    return {"content": body, "headers": {"stripe-signature": f"t={signed_at},v1={'0' * 64},v1={signature}"}}


def test_a_paid_invoice_becomes_one_grant(lava: Lava, monkeypatch: pytest.MonkeyPatch) -> None:
    fastapi, testclient = pytest.importorskip("fastapi"), pytest.importorskip("fastapi.testclient")
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_any")
    app = fastapi.FastAPI()
    names = {"app": app, "lava": lava, "os": os, "hmac": hmac, "hashlib": hashlib, "time": time, "json": json}
    run(
        blocks("A paid invoice becomes a grant")[0],
        names | {"Decimal": Decimal, "Request": fastapi.Request, "Response": fastapi.Response},
    )
    web = testclient.TestClient(app)
    assert web.post("/stripe", **stripe_event(1999)).status_code == 204
    assert web.post("/stripe", **stripe_event(1999)).status_code == 204
    assert str(lava.balance("acme").available) == "19.99"
    assert web.post("/stripe", **stripe_event(500, secret="whsec_guessed")).status_code == 400
    assert web.post("/stripe", **stripe_event(500, age_s=600)).status_code == 400
    assert web.post("/stripe", content=b"{}").status_code == 400
    assert web.post("/stripe", content=b"{}", headers={"stripe-signature": b"t=1,v1=\xe9"}).status_code == 400
    with pytest.raises(Conflict):
        web.post("/stripe", **stripe_event(500))
    assert web.post("/stripe", **stripe_event(500, "evt_2")).status_code == 204
    assert str(lava.balance("acme").available) == "24.99"


def test_your_own_tests_run_as_shown() -> None:
    """Both files, with pytest, and beside them a test of an application that names no customer."""
    pytest.importorskip("openai")
    conftest, money = blocks("Your own tests")
    Path("conftest.py").write_text(conftest)
    Path("test_money.py").write_text(money)
    Path("test_other.py").write_text(
        "import httpx\n"
        "from lava_middleware import Lava\n"
        "from lava_middleware.testing import FakeProvider\n"
        "def test_nothing_is_gated():\n"
        "    with FakeProvider() as provider, Lava(hosts={provider.host: 'openai'}) as lava:\n"
        "        lava.instrument()\n"
        "        url = f'{provider.openai_base_url}/chat/completions'\n"
        "        ask = {'model': 'gpt-4o', 'messages': [{'role': 'user', 'content': 'hello'}]}\n"
        "        assert httpx.post(url, json=ask).status_code == 200\n"
    )
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        env={**os.environ, "LAVA_LEDGER": "memory://"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "2 passed" in said.stdout, said.stdout
    assert not Path("lava.db").exists()


WORKERS = {
    # server → what its worker processes are called in `python -m`
    "uvicorn": ["-m", "uvicorn", "app:app", "--workers", "4", "--port"],
    "gunicorn": ["-m", "gunicorn", "app:app", "--preload", "--workers", "4", "--worker-class", "asgi", "--bind"],
}


@pytest.mark.parametrize("server", WORKERS)
def test_several_workers_share_one_ledger(server: str, provider: FakeProvider, tmp_path: Path) -> None:
    if importlib.util.find_spec(server) is None:
        pytest.skip(f"{server} is not installed")
    assert f"$ {' '.join(WORKERS[server][1:-1])}\n" in shown("console")
    Path("app.py").write_text(blocks("Quickstart")[0].replace('Lava("sqlite:///lava.db")', "Lava()"))
    port = free_port()
    place = f"127.0.0.1:{port}" if server == "gunicorn" else str(port)
    ledger = f"sqlite:///{tmp_path / 'shared.db'}"
    with (
        serving([sys.executable, *WORKERS[server], place], port, LAVA_LEDGER=ledger) as url,
        ThreadPoolExecutor(8) as pool,
    ):
        statuses = list(pool.map(lambda _: httpx.get(f"{url}/chat?question=hi", timeout=60).status_code, range(40)))
    assert statuses == [200] * 40
    document = json.loads(lava_command("doctor", "--json", LAVA_LEDGER=ledger))
    assert document["ok"]
    assert document["granted"] == "5.00"
    assert document["records"] == {"settled": 40}
    assert document["holds"] == []


def test_the_decision_is_found_behind_an_exception(lava: Lava, client: Any, capsys: Any) -> None:
    openai = pytest.importorskip("openai")
    with lava.charge_to("acme"):
        found = run(
            blocks("What a refusal looks like")[0], {"ask": asking(client), "APIStatusError": openai.APIStatusError}
        )
    assert isinstance(found["decision"], Denied)
    assert capsys.readouterr().out.startswith("insufficient_credit 0.00 ")


def test_a_browser_can_read_the_402_if_cors_is_added_after(lava: Lava, client: Any) -> None:
    fastapi, testclient = pytest.importorskip("fastapi"), pytest.importorskip("fastapi.testclient")
    cors = pytest.importorskip("fastapi.middleware.cors").CORSMiddleware
    app = fastapi.FastAPI()
    app.get("/ask")(asking(client))
    app.add_middleware(LavaMiddleware, lava=lava, customer=lambda request: "acme")
    app.add_middleware(cors, allow_origins=["https://shop.example"])
    answer = testclient.TestClient(app).get("/ask", headers={"origin": "https://shop.example"})
    assert answer.status_code == 402
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"


def test_the_command_line_works_line_by_line(lava: Lava) -> None:
    lines = [shlex.split(line, comments=True)[1:] for line in blocks("Command line", "console")[0].splitlines()]
    assert [words[0] for words in lines] == ["lava"] * 10
    for words in lines:
        lava_command(*words[1:])


def test_every_command_it_shows_exists() -> None:
    for words in re.findall(r"^\$ lava ([a-z]+)", shown("console"), re.MULTILINE):
        assert lava_command(words, "--help")


def test_a_follower_gets_every_record(client: Any, capsys: Any) -> None:
    with run(blocks("Where records go")[0], {"Lava": Lava})["lava"] as lava:
        lava.instrument().grant("acme", "1.00")
        with lava.charge_to("acme"):
            asking(client)()
        (record,) = lava.records("acme")
        deadline, said = time.monotonic() + 20, ""
        while record.id not in said and time.monotonic() < deadline:
            time.sleep(0.02)
            said += capsys.readouterr().out
    assert f"{record.id} acme {record.charge}" in said


def test_a_stream_that_runs_out_of_money_ends_like_one_at_its_maximum(
    lava: Lava, client: Any, provider: FakeProvider
) -> None:
    """What the section on refusals says about cuts."""
    provider.default = Script(output_tokens=400, ignores_cap=True)
    lava.grant("acme", "0.0001")
    with lava.charge_to("acme"):
        stream = client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION, stream=True)
        *_, last = [chunk for chunk in stream if chunk.choices]
    assert last.choices[0].finish_reason == "length"
    assert last.model_extra["lava"]["code"] == "insufficient_credit"


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
