"""This file knows how to be a small reseller of AI: a FastAPI application whose customers pay for what they ask.

An example to read and to copy from. `lava demo` serves it, and so does integrations/fastapi. What lava_middleware
needs of an application is marked with (1) to (3); the rest is as it would be without it.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

from anthropic import AsyncAnthropic
from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel

from .. import Lava, LavaMiddleware, identify

CHAT_MODEL = "gpt-4o"
SUMMARY_MODEL = "claude-sonnet-4-5"


class Question(BaseModel):
    text: str
    tokens_max: int | None = None


class Text(BaseModel):
    text: str


def create(lava: Lava, openai: AsyncOpenAI, anthropic: AsyncAnthropic, keys: Mapping[str, str]) -> FastAPI:
    """The application. `keys` is whom this application knows: API key → customer."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await openai.close()
        await anthropic.close()

    app = FastAPI(title="A small reseller of AI", lifespan=lifespan)
    app.add_middleware(LavaMiddleware, lava=lava)  # (1) the gateway

    async def signed_in(authorization: Annotated[str, Header()] = "") -> str:
        customer = keys.get(authorization.removeprefix("Bearer "))
        if customer is None:
            raise HTTPException(401, "unknown API key")
        identify(customer)  # (2) who pays for whatever this request calls
        return customer

    Customer = Annotated[str, Depends(signed_in)]

    @app.post("/chat")
    async def chat(question: Question, customer: Customer) -> StreamingResponse:
        # (3) The stream is opened before the response starts: a refusal can still become a 402 for our client.
        answer = await openai.chat.completions.create(stream=True, **_asked(question))
        return StreamingResponse(_events(answer), media_type="text/event-stream")

    @app.post("/answer")
    async def answer(question: Question, customer: Customer) -> Text:
        completion = await openai.chat.completions.create(**_asked(question))
        return Text(text=completion.choices[0].message.content or "")

    @app.post("/summary")
    async def summary(article: Text, customer: Customer) -> Text:
        message = await anthropic.messages.create(
            model=SUMMARY_MODEL,
            max_tokens=300,
            messages=[{"role": "user", "content": f"Summarize this:\n\n{article.text}"}],
        )
        return Text(text="".join(block.text for block in message.content if block.type == "text"))

    @app.get("/balance")
    async def balance(customer: Customer) -> dict[str, str]:
        now = await lava.abalance(customer)
        return {"available": str(now.available), "held": str(now.held), "balance": str(now.balance)}

    return app


def _asked(question: Question) -> dict[str, Any]:
    asked: dict[str, Any] = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": question.text}]}
    return asked if question.tokens_max is None else {**asked, "max_completion_tokens": question.tokens_max}


async def _events(answer: AsyncStream[ChatCompletionChunk]) -> AsyncIterator[str]:
    """The answer as server-sent events: {"text": ...} for each piece, and {"finish": ...} at the end."""
    async with answer:  # closed when our client leaves
        async for chunk in answer:
            for choice in chunk.choices:
                if choice.delta.content:
                    yield _event({"text": choice.delta.content})
                if choice.finish_reason:
                    cut = (chunk.model_extra or {}).get("lava", {})  # there if the money ended, and not the answer
                    yield _event({"finish": choice.finish_reason, "reason": cut.get("code")})


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
