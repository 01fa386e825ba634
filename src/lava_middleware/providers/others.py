"""This file knows the hosts of providers that are not metered yet, so that nothing reaches them by oversight."""

from __future__ import annotations

from .endpoints import READING, SOCKETS
from .row import Row

_READS = (*SOCKETS, READING[0])
"""Reading is free, but a GET that opens a socket bills by the minute."""

_HOSTS: dict[str, tuple[str, ...]] = {
    # provider → hosts that serve nothing but AI
    "bedrock": (
        "bedrock-runtime.*.amazonaws.com",
        "bedrock-runtime-fips.*.amazonaws.com",
        "bedrock-agent-runtime.*.amazonaws.com",
    ),
    "cohere": ("api.cohere.com", "api.cohere.ai"),
    "huggingface": ("api-inference.huggingface.co", "*.endpoints.huggingface.cloud"),
    "inference-net": ("api.inference.net",),
    "baseten": ("inference.baseten.co", "*.api.baseten.co", "app.baseten.co"),
    "gmi": ("api.gmi-serving.com",),
    "nscale": ("inference.api.nscale.com",),
    "minimax": ("api.minimax.io", "api.minimaxi.com", "api.minimax.chat"),
    "ai21": ("api.ai21.com",),
    "aleph-alpha": ("api.aleph-alpha.com",),
    "nvidia": ("integrate.api.nvidia.com", "ai.api.nvidia.com"),
    "siliconflow": ("api.siliconflow.com", "api.siliconflow.cn"),
    "volcengine": ("ark.*.volces.com", "ark.*.bytepluses.com"),
    "lambda": ("api.lambda.ai", "api.lambdalabs.com"),
    "friendli": ("api.friendli.ai",),
    "upstage": ("api.upstage.ai",),
    "writer": ("api.writer.com",),
    "reka": ("api.reka.ai",),
    "jina": ("api.jina.ai", "deepsearch.jina.ai"),
    "replicate": ("api.replicate.com", "stream.replicate.com"),
    "elevenlabs": ("api.elevenlabs.io", "*.elevenlabs.io"),
    "deepgram": ("api.deepgram.com", "*.deepgram.com"),
    "assemblyai": ("api.assemblyai.com", "*.assemblyai.com"),
    "stability": ("api.stability.ai",),
    "watsonx": ("*.ml.cloud.ibm.com",),
    "cloudflare-gateway": ("gateway.ai.cloudflare.com",),
    "portkey": ("api.portkey.ai",),
    "helicone": ("ai-gateway.helicone.ai", "oai.helicone.ai", "anthropic.helicone.ai"),
    "requesty": ("router.requesty.ai",),
    "pydantic-gateway": ("gateway.pydantic.dev", "gateway-*.pydantic.dev"),
}

_SHARED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # provider → (hosts that serve other things too, the paths on them that are AI)
    "sagemaker": (
        ("runtime.sagemaker.*.amazonaws.com",),
        ("/endpoints/*/invocations", "/endpoints/*/invocations-response-stream"),
    ),
    "chatgpt": (("chatgpt.com",), ("/backend-api/codex/**",)),
}

ROWS_WITHOUT_ENDPOINTS: tuple[Row, ...] = (
    *(Row(name, hosts, _READS) for name, hosts in _HOSTS.items()),
    *(Row(name, hosts, _READS, paths=paths) for name, (hosts, paths) in _SHARED.items()),
)
