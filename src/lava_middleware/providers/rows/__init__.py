"""This package knows the providers, one file a family of them."""

from __future__ import annotations

from . import anthropic, chat_hosts, google, local, openai

ROWS = (*openai.ROWS, *anthropic.ROWS, *google.ROWS, *chat_hosts.ROWS, *local.ROWS)
"""In the order in which they are asked, once those that own only some paths of a host have been."""
