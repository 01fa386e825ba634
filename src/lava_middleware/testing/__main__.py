"""This file knows how to run the stand-in from the command line, with a line for each request."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Sequence

from .provider import FakeProvider
from .script import Script
from .served import Served


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    script = Script(
        output_tokens=options.tokens,
        tokens_per_chunk=options.tokens_per_chunk,
        chunk_delay_s=options.chunk_delay,
        first_byte_delay_s=options.first_byte_delay,
    )
    provider = FakeProvider(script, port=options.port, bind=options.bind, on_served=_report)
    try:
        provider.start()
    except OSError as error:
        print(f"cannot listen on {options.bind}:{options.port}: {error.strerror}; choose another with --port")
        return 1
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    print(f"OpenAI     {provider.openai_base_url}")
    print(f"Anthropic  {provider.anthropic_base_url}")
    print(f"Gemini     {provider.gemini_base_url}")
    print(f"Mistral    {provider.mistral_base_url}")
    print("Any API key will do. Ctrl-C stops it.", flush=True)
    while not stop.wait(3600):
        pass
    provider.stop()
    served = provider.served
    print(f"\n{served.requests} requests, {served.input_tokens} tokens in, {served.output_tokens} tokens out")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lava_middleware.testing",
        description="A local stand-in for OpenAI, Azure OpenAI, Anthropic, Gemini, Mistral, Groq and Together, "
        "for tests and first steps.",
    )
    parser.add_argument("--port", type=int, default=8811, help="default: %(default)s; 0 takes a free one")
    parser.add_argument("--bind", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=None, help="length of each answer (40)")
    parser.add_argument("--tokens-per-chunk", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--chunk-delay", type=float, default=0.02, metavar="S", help="default: %(default)s")
    parser.add_argument("--first-byte-delay", type=float, default=0.0, metavar="S", help="default: %(default)s")
    return parser


def _report(served: Served) -> None:
    how = "stream" if served.stream else "unary"
    tokens = f"in={served.input_tokens} out={served.output_tokens}"
    status = "-" if served.status is None else served.status
    print(f"{served.method} {served.path} {served.model or '-'} {how} {status} {tokens} {served.state}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
