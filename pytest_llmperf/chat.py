"""One request to Ollama as it goes over the wire, and what its recorded answer says. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from typing import Any

from pytest_llmperf.model import InvalidRunError, Workload
from pytest_llmperf.traffic import Exchange, Line, Recording

OK = 200

SEED = 1
"""Sent with every request unless the options name another: equal prompts then give equal work."""


def request(workload: Workload, prompt: str, url: str) -> bytes:
    """One streaming /api/chat request as it goes over the wire."""
    options = {"seed": SEED, **workload.options, "num_predict": workload.tokens}
    message = {"role": "user", "content": prompt}
    # no keep_alive: that of the load stays in force
    payload = {"model": workload.model, "messages": [message], "options": options, "stream": True}
    body = json.dumps(payload).encode()
    host = url.partition("//")[2]
    head = f"POST /api/chat HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def exchange(recording: Recording, status: int, answer: Sequence[Line], *, budget: int, release: float) -> Exchange:
    """A recorded answer as an Exchange, times relative to `release`; InvalidRunError if it is not whole."""
    if status != OK:
        said = error_text("\n".join(line.text for line in answer))
        raise InvalidRunError(f"the server answered {status} with an error: {said}")
    chunks = [(line, _parsed(line.text)) for line in answer]
    for number, (_, chunk) in enumerate(chunks):
        if "error" in chunk:
            raise InvalidRunError(f"the server answered 200 with an error after {number} chunks: {chunk['error']}")
    if not chunks or not chunks[-1][1].get("done"):
        raise InvalidRunError(f"the stream ended without done after {len(chunks)} chunks (HTTP {status})")
    spoken = [line for line, chunk in chunks if _text(chunk)]
    final = chunks[-1][1]
    if not spoken or "eval_count" not in final:
        raise InvalidRunError("the server answered without a single token; change prompts= or the model")
    return Exchange(
        released=recording.released - release,
        first_token=spoken[0].at - release,
        ended=chunks[-1][0].at - release,
        gaps=tuple(b.at - a.at for a, b in pairwise(spoken) if a.alone and b.alone),
        tokens=final["eval_count"],
        budget=budget,
        server={name.removesuffix("_duration"): ns / 1e9 for name, ns in final.items() if name.endswith("_duration")},
        prompt=final.get("prompt_eval_count", 0),
        cached=final.get("prompt_eval_cached_count", 0),
        chunks=len(spoken),
        merged=sum(not line.alone for line in spoken),
        behind=tuple(_behind(recording.epoch, chunks)),
    )


def _behind(epoch: float, chunks: Sequence[tuple[Line, Mapping[str, Any]]]) -> Iterator[float]:
    """Seconds from the server's stamp of each line to its arrival."""
    for line, chunk in chunks if epoch else ():
        with suppress(KeyError, ValueError, TypeError):
            yield line.at + epoch - datetime.fromisoformat(chunk["created_at"]).timestamp()


def _parsed(text: str) -> dict[str, Any]:
    try:
        chunk = json.loads(text)
    except ValueError as error:
        raise InvalidRunError(f"the server sent a line that is not JSON: {text[:80]!r}") from error
    if not isinstance(chunk, dict):
        raise InvalidRunError(f"the server sent a line that is not a JSON object: {text[:80]!r}")
    return chunk


def _text(chunk: Mapping[str, Any]) -> str:
    """What a chunk adds: content or thinking, of /api/chat or /api/generate."""
    said = chunk.get("message") or {}
    return (said.get("content") or said.get("thinking") or chunk.get("response") or chunk.get("thinking")) or ""


def error_text(body: str) -> str:
    """What an answer's body says went wrong."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.strip()[:200] or "nothing"
