"""This file knows how to serve the example application by itself: `python app.py`.

The application is `lava_middleware.demo.application`, the one that `lava demo` plays with. With OPENAI_API_KEY and
ANTHROPIC_API_KEY in the environment it calls the real providers, else a stand-in on this machine.
"""

import argparse
import os
from contextlib import ExitStack

import uvicorn
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from lava_middleware import Lava
from lava_middleware.demo.application import create
from lava_middleware.testing import FakeProvider, Script

KEYS = {"key-of-acme": "acme", "key-of-brook": "brook"}  # API key → customer; yours are in a database


def main() -> None:
    parser = argparse.ArgumentParser(description="A small reseller of AI.")
    parser.add_argument("--port", type=int, default=8000)
    port = parser.parse_args().port
    with ExitStack() as running:
        if os.environ.get("OPENAI_API_KEY") and os.environ.get("ANTHROPIC_API_KEY"):
            lava = running.enter_context(Lava(markup="1.20"))
            openai, anthropic = AsyncOpenAI(), AsyncAnthropic()
        else:
            print("No keys of providers: a stand-in on this machine answers.", flush=True)
            provider = running.enter_context(FakeProvider(Script(output_tokens=200, chunk_delay_s=0.02)))
            lava = running.enter_context(Lava(markup="1.20", hosts={provider.host: ("openai", "anthropic")}))
            openai = AsyncOpenAI(api_key="any", base_url=provider.openai_base_url)
            anthropic = AsyncAnthropic(api_key="any", base_url=provider.anthropic_base_url)
        lava.grant("acme", "1.00", key="welcome")  # once, however often this is started
        uvicorn.run(create(lava, openai, anthropic, KEYS), port=port, timeout_graceful_shutdown=5)


if __name__ == "__main__":
    main()
