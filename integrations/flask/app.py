"""This file knows how to be a small reseller of AI with Flask, and how to serve it: `python app.py`.

With OPENAI_API_KEY in the environment it calls the real provider, else a stand-in on this machine. What lava_middleware
needs is marked with (1) to (4); the rest is as it would be without it.
"""

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from flask import Flask, Response, abort, g, jsonify, request
from openai import OpenAI

from lava_middleware import Lava, bind_context, identify
from lava_middleware.flask import LavaFlask
from lava_middleware.testing import FakeProvider, Script

CHAT_MODEL = "gpt-4o"
KEYS = {"key-of-acme": "acme", "key-of-brook": "brook"}  # API key → customer; yours are in a database


def create(lava: Lava, openai: OpenAI) -> Flask:
    app = Flask(__name__)
    LavaFlask(app, lava)  # (1) the gateway, and the handler that answers refusals

    @app.before_request
    def signed_in() -> None:
        g.customer = KEYS.get(request.headers.get("authorization", "").removeprefix("Bearer "))
        if g.customer is None:
            abort(401)
        identify(g.customer)  # (2) who pays for whatever this request calls

    @app.post("/chat")
    def chat() -> Response:
        # (3) The stream is opened before the response starts: a refusal can still become a 402 for our client.
        answer = openai.chat.completions.create(stream=True, **asked(request.get_json()["text"]))
        return Response(events(answer), mimetype="text/event-stream")

    @app.post("/answer")
    def answer() -> Response:
        return jsonify(text=answered(request.get_json()["text"]))

    @app.post("/answers")
    def answers() -> Response:
        with ThreadPoolExecutor(4) as pool:
            # (4) A pool's threads are of no request: bind_context() hands them this one's.
            return jsonify(texts=list(pool.map(bind_context(answered), request.get_json()["texts"])))

    @app.get("/balance")
    def balance() -> Response:
        now = lava.balance(g.customer)
        return jsonify(available=str(now.available), held=str(now.held), balance=str(now.balance))

    def asked(text: str) -> dict:
        return {"model": CHAT_MODEL, "messages": [{"role": "user", "content": text}]}

    def answered(text: str) -> str:
        return openai.chat.completions.create(**asked(text)).choices[0].message.content or ""

    return app


def events(answer):
    """The answer as server-sent events: {"text": ...} for each piece, and {"finish": ...} at the end."""
    with answer:  # closed when our client leaves
        for chunk in answer:
            for choice in chunk.choices:
                if choice.delta.content:
                    yield event({"text": choice.delta.content})
                if choice.finish_reason:
                    cut = (chunk.model_extra or {}).get("lava", {})  # there if the money ended, and not the answer
                    yield event({"finish": choice.finish_reason, "reason": cut.get("code")})


def event(data: dict) -> str:
    return f"data: {json.dumps(data)}\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="A small reseller of AI.")
    parser.add_argument("--port", type=int, default=8000)
    port = parser.parse_args().port
    with ExitStack() as running:
        if os.environ.get("OPENAI_API_KEY"):
            lava, openai = running.enter_context(Lava(markup="1.20")), OpenAI()
        else:
            print("No key of the provider: a stand-in on this machine answers.", flush=True)
            provider = running.enter_context(FakeProvider(Script(output_tokens=200, chunk_delay_s=0.02)))
            lava = running.enter_context(Lava(markup="1.20", hosts={provider.host: "openai"}))
            openai = OpenAI(api_key="any", base_url=provider.openai_base_url)
        lava.grant("acme", "1.00", key="welcome")  # once, however often this is started
        create(lava, openai).run(port=port, threaded=True)


if __name__ == "__main__":
    main()
