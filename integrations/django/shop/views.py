"""This file knows what customers can ask. It is as it would be without lava_middleware, but for bind_context()."""

import json
from concurrent.futures import ThreadPoolExecutor

from django.conf import settings
from django.http import JsonResponse, StreamingHttpResponse
from openai import AsyncOpenAI, OpenAI

from lava_middleware import bind_context
from lava_middleware.django import lava

CHAT_MODEL = "gpt-4o"
openai, aopenai = OpenAI(api_key=settings.OPENAI_API_KEY), AsyncOpenAI(api_key=settings.OPENAI_API_KEY)


async def chat(request):
    """The answer as server-sent events, as it comes."""
    # The stream is opened before the response starts: a refusal can still become a 402 for our client.
    answer = await aopenai.chat.completions.create(stream=True, **_asked(json.loads(request.body)["text"]))
    return StreamingHttpResponse(_events(answer), content_type="text/event-stream")


def answer(request):
    return JsonResponse({"text": _answer(json.loads(request.body)["text"])})


def answers(request):
    """Several questions at once, in threads."""
    with ThreadPoolExecutor(4) as pool:
        # A pool's threads are of no request: bind_context() hands them this one's.
        found = list(pool.map(bind_context(_answer), json.loads(request.body)["texts"]))
    return JsonResponse({"texts": found})


def balance(request):
    now = lava().balance(request.user.pk)
    return JsonResponse({"available": str(now.available), "held": str(now.held), "balance": str(now.balance)})


def _asked(text):
    return {"model": CHAT_MODEL, "messages": [{"role": "user", "content": text}]}


def _answer(text):
    return openai.chat.completions.create(**_asked(text)).choices[0].message.content or ""


async def _events(answer):
    """{"text": ...} for each piece, and {"finish": ...} at the end."""
    async with answer:  # closed when our client leaves
        async for chunk in answer:
            for choice in chunk.choices:
                if choice.delta.content:
                    yield _event({"text": choice.delta.content})
                if choice.finish_reason:
                    cut = (chunk.model_extra or {}).get("lava", {})  # there if the money ended, and not the answer
                    yield _event({"finish": choice.finish_reason, "reason": cut.get("code")})


def _event(data):
    return f"data: {json.dumps(data)}\n\n"
