"""This file knows how to serve the example project: `python app.py`.

With OPENAI_API_KEY in the environment it calls the real provider, else a stand-in on this machine.
"""

import argparse
import os
from contextlib import ExitStack

import uvicorn

from lava_middleware.testing import FakeProvider, Script


def main() -> None:
    parser = argparse.ArgumentParser(description="A small reseller of AI.")
    parser.add_argument("--port", type=int, default=8000)
    port = parser.parse_args().port
    with ExitStack() as running:
        if not os.environ.get("OPENAI_API_KEY"):
            print("No key of the provider: a stand-in on this machine answers.", flush=True)
            provider = running.enter_context(FakeProvider(Script(output_tokens=200, chunk_delay_s=0.02)))
            os.environ |= {"OPENAI_API_KEY": "any", "OPENAI_BASE_URL": provider.openai_base_url}
            os.environ["LAVA_HOSTS"] = f"{provider.host}=openai"
        os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
        from django.core.asgi import get_asgi_application

        from lava_middleware.django import lava

        application = get_asgi_application()
        lava().grant("acme", "1.00", key="welcome")  # once, however often this is started
        uvicorn.run(application, port=port, lifespan="off", timeout_graceful_shutdown=5)


if __name__ == "__main__":
    main()
