"""This file knows how to give users what they need in their own tests: a stand-in provider, a clock, a switch.

from lava_middleware.testing import FakeProvider, Script

with FakeProvider(Script(text="Hello!")) as provider:
    client = OpenAI(api_key="any", base_url=provider.openai_base_url)
"""

from __future__ import annotations

from .barrier import Barrier
from .canned import canned_transport
from .clock import FrozenClock
from .off import billing_off
from .ports import refusing_port
from .provider import FakeProvider
from .script import Script, ToolCall
from .served import Figures, Served, Totals
from .tokens import count as count_tokens

__all__ = [
    "Barrier",
    "FakeProvider",
    "Figures",
    "FrozenClock",
    "Script",
    "Served",
    "ToolCall",
    "Totals",
    "billing_off",
    "canned_transport",
    "count_tokens",
    "refusing_port",
]
