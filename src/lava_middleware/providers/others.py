"""This file knows the hosts of providers that are not metered yet, so that nothing reaches them by oversight."""

from __future__ import annotations

from .row import Endpoint, Row

_READS: tuple[Endpoint, ...] = (
    # Reading is free, but a GET that opens a socket bills by the minute.
    Endpoint(("GET",), "/**/realtime", door="realtime"),
    Endpoint(("GET",), "/**/listen", door="realtime"),
    Endpoint(("GET",), "/**/speak", door="realtime"),
    Endpoint(("GET",), "/**/ws", door="realtime"),
    Endpoint(("GET",), "/ws/**", door="realtime"),
    Endpoint(("GET",), "/**/stream-input", door="realtime"),
    Endpoint(("GET",), "/**/multi-stream-input", door="realtime"),
    Endpoint(("GET",), "/**/conversation", door="realtime"),
    Endpoint(("GET", "HEAD", "OPTIONS"), "/**", free=True, door="reading"),
)

_HOSTS: dict[str, tuple[str, ...]] = {
    # provider → hosts that serve nothing but AI
    "gemini": ("generativelanguage.googleapis.com", "*.generativelanguage.googleapis.com"),
    "vertex": ("aiplatform.googleapis.com", "*-aiplatform.googleapis.com", "aiplatform.*.rep.googleapis.com"),
    "bedrock": (
        "bedrock-runtime.*.amazonaws.com",
        "bedrock-runtime-fips.*.amazonaws.com",
        "bedrock-agent-runtime.*.amazonaws.com",
        "bedrock-mantle.*.api.aws",
    ),
    "mistral": ("api.mistral.ai", "codestral.mistral.ai"),
    "cohere": ("api.cohere.com", "api.cohere.ai"),
    "deepseek": ("api.deepseek.com",),
    "xai": ("api.x.ai", "*.api.x.ai"),
    "together": ("api.together.xyz", "api.together.ai"),
    "fireworks": ("api.fireworks.ai",),
    "cerebras": ("api.cerebras.ai",),
    "perplexity": ("api.perplexity.ai",),
    "openrouter": ("openrouter.ai",),
    "deepinfra": ("api.deepinfra.com",),
    "huggingface": ("router.huggingface.co", "api-inference.huggingface.co", "*.endpoints.huggingface.cloud"),
    "hyperbolic": ("api.hyperbolic.xyz",),
    "sambanova": ("api.sambanova.ai", "fast-api.snova.ai"),
    "nebius": ("api.studio.nebius.ai", "api.studio.nebius.com", "api.tokenfactory.nebius.com"),
    "novita": ("api.novita.ai",),
    "inference-net": ("api.inference.net",),
    "baseten": ("inference.baseten.co", "*.api.baseten.co", "app.baseten.co"),
    "gmi": ("api.gmi-serving.com",),
    "nscale": ("inference.api.nscale.com",),
    "moonshot": ("api.moonshot.ai", "api.moonshot.cn"),
    "zai": ("api.z.ai", "open.bigmodel.cn"),
    "alibaba": ("dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com", "dashscope-us.aliyuncs.com"),
    "minimax": ("api.minimax.io", "api.minimaxi.com", "api.minimax.chat"),
    "ai21": ("api.ai21.com",),
    "aleph-alpha": ("api.aleph-alpha.com",),
    "avian": ("api.avian.io",),
    "venice": ("api.venice.ai",),
    "nvidia": ("integrate.api.nvidia.com", "ai.api.nvidia.com"),
    "siliconflow": ("api.siliconflow.com", "api.siliconflow.cn"),
    "volcengine": ("ark.*.volces.com", "ark.*.bytepluses.com"),
    "doubleword": ("api.doubleword.ai",),
    "lambda": ("api.lambda.ai", "api.lambdalabs.com"),
    "friendli": ("api.friendli.ai",),
    "upstage": ("api.upstage.ai",),
    "writer": ("api.writer.com",),
    "reka": ("api.reka.ai",),
    "voyage": ("api.voyageai.com",),
    "jina": ("api.jina.ai", "deepsearch.jina.ai"),
    "replicate": ("api.replicate.com", "stream.replicate.com"),
    "elevenlabs": ("api.elevenlabs.io", "*.elevenlabs.io"),
    "deepgram": ("api.deepgram.com", "*.deepgram.com"),
    "assemblyai": ("api.assemblyai.com", "*.assemblyai.com"),
    "stability": ("api.stability.ai",),
    "watsonx": ("*.ml.cloud.ibm.com",),
    "github-copilot": ("api.githubcopilot.com", "*.githubcopilot.com"),
    "github-models": ("models.github.ai", "models.inference.ai.azure.com"),
    "vercel-gateway": ("ai-gateway.vercel.sh",),
    "cloudflare-gateway": ("gateway.ai.cloudflare.com",),
    "portkey": ("api.portkey.ai",),
    "helicone": ("ai-gateway.helicone.ai", "oai.helicone.ai", "anthropic.helicone.ai"),
    "heroku": ("*.inference.heroku.com",),
    "crusoe": ("api.inference.crusoecloud.com",),
    "requesty": ("router.requesty.ai",),
    "pydantic-gateway": ("gateway.pydantic.dev", "gateway-*.pydantic.dev"),
}

_SHARED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # provider → (hosts that serve other things too, the paths on them that are AI)
    "cloudflare": (("api.cloudflare.com",), ("/client/v4/accounts/*/ai/**",)),
    "databricks": (
        ("*.cloud.databricks.com", "*.azuredatabricks.net", "*.gcp.databricks.com"),
        ("/serving-endpoints/**", "/ai-gateway/**"),
    ),
    "snowflake": (("*.snowflakecomputing.com",), ("/api/v2/cortex/**",)),
    "ollama": (("ollama.com",), ("/api/**", "/v1/**")),
    "azure-anthropic": (("*.services.ai.azure.com", "*.cognitiveservices.azure.com"), ("/anthropic/**",)),
    "azure-foundry": (("*.services.ai.azure.com",), ("/**",)),
    "azure-foundry-models": (("*.cognitiveservices.azure.com",), ("/models/**", "/providers/**")),
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
