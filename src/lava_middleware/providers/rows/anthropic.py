"""This file knows Anthropic."""

from __future__ import annotations

from ..endpoints import READING, door, free, metered
from ..row import RECORDED, Row
from ..spoken import CHAT_COMPATIBLE, MESSAGES

ANTHROPIC = Row(
    name="anthropic",
    hosts=("api.anthropic.com",),
    endpoints=(
        metered("/v1/messages", MESSAGES),
        *free("token counting", "/v1/messages/count_tokens"),
        *door("batches", "/v1/messages/batches"),
        *free("cancelling", "/v1/messages/batches/*/cancel"),
        metered("/v1/chat/completions", CHAT_COMPATIBLE),
        *door("completions", "/v1/complete"),
        *free("files", "/v1/files"),
        *free("skills", "/v1/skills", "/v1/skills/**"),
        *free("administration", "/v1/organizations/**", "/v1/user_profiles", "/v1/user_profiles/**"),
        *door("agents", "/v1/agents/**", "/v1/sessions/**", "/v1/deployments/**", "/v1/dreams/**"),
        *door("agents", "/v1/environments/**", "/v1/memory_stores/**", "/v1/vaults/**"),
        *READING,
    ),
    family="claude",
    tools_framing=640,
    evidence=RECORDED,
)

ROWS = (ANTHROPIC,)
