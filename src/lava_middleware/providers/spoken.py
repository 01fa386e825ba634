"""This file knows the one instance of each dialect that all rows share."""

from __future__ import annotations

from ..dialects.anthropic_messages import AnthropicMessages
from ..dialects.gemini import GeminiGenerate
from ..dialects.gemini_embeddings import GeminiEmbeddings
from ..dialects.openai_chat import OpenAIChat
from ..dialects.openai_completions import DEFAULT_CAP, FillInTheMiddle, OpenAICompletions
from ..dialects.openai_embeddings import OpenAIEmbeddings
from ..dialects.openai_responses import OpenAIResponses

CHAT = OpenAIChat("max_completion_tokens")
CHAT_OF_AZURE = OpenAIChat("by_model")
CHAT_COMPATIBLE = OpenAIChat("max_tokens")
COMPLETIONS = OpenAICompletions(DEFAULT_CAP)
COMPLETIONS_COMPATIBLE = OpenAICompletions()
FIM = FillInTheMiddle()
RESPONSES = OpenAIResponses()
EMBEDDINGS = OpenAIEmbeddings()
MESSAGES = AnthropicMessages()
GENERATE = GeminiGenerate()
GENERATE_STREAM = GeminiGenerate(streams=True)
EMBED_CONTENT = GeminiEmbeddings()
