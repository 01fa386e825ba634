"""This file knows what everything is called in spans and metrics.

The gen_ai names are still in development and exist in two generations: A is what the instrumentations of today emit,
B what the conventions say since they moved to their own repository. One table each; the code never writes a name.
https://github.com/open-telemetry/semantic-conventions-genai
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from ..core.usage import UNITS

SCOPE = "lava_middleware"
SCHEMA_URL = "https://opentelemetry.io/schemas/gen-ai/1.42.0"
SPAN = "lava.exchange"

Generation: TypeAlias = Literal["A", "B"]


@dataclass(frozen=True, slots=True)
class GenAINames:
    """The gen_ai names of one generation.

    Those under `usage` are totals that include one another. They belong on an inference span and never on ours:
    dashboards sum them over all spans, and would count every call twice.
    """

    operation: str = "gen_ai.operation.name"
    provider: str = "gen_ai.provider.name"
    request_model: str = "gen_ai.request.model"
    request_stream: str = "gen_ai.request.stream"
    response_model: str = "gen_ai.response.model"
    response_id: str = "gen_ai.response.id"
    finish_reasons: str = "gen_ai.response.finish_reasons"
    usage_input: str = "gen_ai.usage.input_tokens"
    usage_output: str = "gen_ai.usage.output_tokens"
    usage_reasoning: str = "gen_ai.usage.reasoning.output_tokens"
    usage_cache_read: str = "gen_ai.usage.cache_read.input_tokens"
    usage_cache_write: str = "gen_ai.usage.cache_creation.input_tokens"
    duration: str = "gen_ai.client.operation.duration"


GENERATION_A = GenAINames()
GENERATION_B = replace(
    GENERATION_A,
    usage_cache_write="gen_ai.usage.cache_write.input_tokens",
    duration="gen_ai.client.inference.duration",
)
GENERATIONS: dict[Generation, GenAINames] = {"A": GENERATION_A, "B": GENERATION_B}

PROVIDER_NAMES = {
    # our name of a provider → gen_ai.provider.name. A provider that is missing here is called there as we call it.
    "azure-openai": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "moonshot": "moonshot_ai",
    "vertex": "gcp.vertex_ai",
    "xai": "x_ai",
}

NO_INFERENCE = frozenset(
    # values of gen_ai.operation.name that are not a call of a model. A value that is missing here is one.
    ("create_agent", "invoke_agent", "invoke_workflow", "execute_tool", "plan", "retrieval", "create_memory")
)

# Stable ones, of OpenTelemetry's core conventions.
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
HTTP_STATUS = "http.response.status_code"
ERROR_TYPE = "error.type"

# Ours. Money stands as a whole number of ten-billionths of a credit, and again as a decimal string: never as a double.
RECORD_ID = "lava.record.id"
RECORD_VERSION = "lava.record.version"
RECORD = "lava.record"
"""The whole record as text, where it is signed."""
SIGNATURE = "lava.record.signature"
REQUEST_ID = "lava.request.id"
ATTEMPT = "lava.exchange.attempt"
STREAM = "lava.exchange.stream"
ENDING = "lava.exchange.ending"
STOPPED = "lava.exchange.stopped"
CUSTOMER_ID = "lava.customer.id"
CUSTOMER_BASIS = "lava.customer.basis"
METER = "lava.meter"
PRICE_VERSION = "lava.price.version"
CHARGED = "lava.credits.charged"
CHARGED_DECIMAL = "lava.credits.charged_decimal"
UNIT_SCALE = "lava.credits.unit_scale"
OVERRUN = "lava.credits.overrun"
OVERRUN_CAUSE = "lava.credits.overrun_cause"
DEBT = "lava.credits.debt"
COST_AMOUNT = "lava.cost.amount"
COST_TICKS = "lava.cost.ticks"
COST_CURRENCY = "lava.cost.currency"
COST_BASIS = "lava.cost.basis"
USAGE_BASIS = "lava.usage.basis"
USAGE = {unit: f"lava.usage.{unit}" for unit in UNITS}
OUTCOME = "lava.outcome"
GATE_DECISION = "lava.gate.decision"
GATE_REASON = "lava.gate.reason"

# Labels that only metrics have.
UNIT = "lava.usage.unit"
CAUSE = "lava.credits.overrun_cause"
FOLLOWER = "lava.follower"
RESULT = "lava.export.result"


@dataclass(frozen=True, slots=True)
class Instrument:
    name: str
    unit: str
    description: str


DECISIONS = Instrument("lava.gate.decisions", "{decision}", "Provider calls that the gate decided on, by answer.")
GATE_DURATION = Instrument("lava.gate.duration", "s", "Time from the start of a provider call to the gate's answer.")
UNMETERED = Instrument("lava.exchange.unmetered", "{exchange}", "Provider calls that passed without being metered.")
CREDITS_CHARGED = Instrument("lava.credits.charged", "{tick}", "Charged to customers, in ten-billionths of a credit.")
CREDITS_OVERRUN = Instrument("lava.credits.overrun", "{tick}", "Charged above what was held, by cause, in ticks.")
CREDITS_DEBT = Instrument("lava.credits.debt", "{tick}", "Charged that no credit covered, in ticks.")
COST = Instrument("lava.cost", "{tick}", "What providers take for the calls that were charged, in ticks.")
USED = Instrument("lava.usage", "{unit}", "Units used, disjoint: they add up.")
RECORDS = Instrument("lava.records", "{record}", "Usage records, by outcome.")
ESTIMATED = Instrument("lava.usage.estimated", "{record}", "Usage records whose figures no provider reported.")
SETTLEMENT_LAG = Instrument("lava.settlement.lag", "s", "Time from the end of an exchange to its committed record.")
PENDING = Instrument("lava.outbox.pending", "{entry}", "Journal entries that a follower has still to pass.")
OLDEST_AGE = Instrument("lava.outbox.oldest_age", "s", "Age of the oldest entry that a follower has still to pass.")
EXPORTED = Instrument("lava.export.records", "{record}", "Usage records that followers tried to send, by result.")
DEAD = Instrument("lava.export.dead", "{record}", "Usage records that a follower's target refused for good.")
