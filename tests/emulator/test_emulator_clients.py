"""Somebody else's agents talk to the emulator: AutoGen's client, as its users write it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from autogen_core.models import CreateResult, LLMMessage, ModelFamily, ModelInfo, SystemMessage, UserMessage
from autogen_ext.models.ollama import OllamaChatCompletionClient

from .instances import GEMMA, Emulate

T = TypeVar("T")
Ask = Callable[[OllamaChatCompletionClient], Awaitable[T]]

ABILITIES = ModelInfo(
    vision=False, function_calling=False, json_output=False, family=ModelFamily.UNKNOWN, structured_output=False
)
TALK: list[LLMMessage] = [
    SystemMessage(content="Be brief."),
    UserMessage(content="Why is the sky blue?", source="user"),
]
PROMPT_TOKENS = 10 + len("system: Be brief.\nuser: Why is the sky blue?") // 4


@pytest.fixture
def address(emulate: Emulate) -> str:
    return emulate("speed=50").address


def asked(address: str, ask: Ask[T]) -> T:
    async def run() -> T:
        client = OllamaChatCompletionClient(model=GEMMA, host=address, model_info=ABILITIES)
        try:
            return await ask(client)
        finally:
            await client._client._client.aclose()  # its own close() leaves the connection open

    return asyncio.run(run())


def test_autogen_chats(address: str) -> None:
    answer = asked(address, lambda client: client.create(TALK))
    assert isinstance(answer.content, str)
    assert answer.finish_reason == "stop"
    assert answer.usage.prompt_tokens == PROMPT_TOKENS
    assert answer.usage.completion_tokens == len(answer.content.split()) > 30


def test_autogen_streams_and_learns_the_usage(address: str) -> None:
    async def ask(client: OllamaChatCompletionClient) -> list[str | CreateResult]:
        return [part async for part in client.create_stream(TALK)]

    *parts, final = asked(address, ask)
    texts = [part for part in parts if isinstance(part, str)]
    assert isinstance(final, CreateResult)
    assert final.content == "".join(texts)
    assert final.finish_reason == "stop"
    assert final.usage.prompt_tokens == PROMPT_TOKENS
    assert final.usage.completion_tokens == len(texts) == len(parts) > 30
