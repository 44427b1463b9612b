"""Ollama's bodies: requests checked as Ollama checks them, answers with its fields in its order."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pytest_llmperf.emulator import durations, models, options
from pytest_llmperf.emulator.config import Config
from pytest_llmperf.emulator.draw import Job
from pytest_llmperf.emulator.engine import Finished, Token, prompt_tokens
from pytest_llmperf.emulator.models import Model
from pytest_llmperf.emulator.runner import Runner

Body = dict[str, Any]

_FIELDS: dict[str, tuple[type, str]] = {
    "model": (str, "string"),
    "prompt": (str, "string"),
    "messages": (list, "[]api.Message"),
    "stream": (bool, "bool"),
    "raw": (bool, "bool"),
    "options": (dict, "map[string]interface {}"),
}
_GO_NAMES = {str: "string", bool: "bool", int: "number", float: "number", list: "array", dict: "object"}


class Garbled(dict[str, Any]):
    """A record whose line is to be no JSON."""


class ApiError(Exception):
    """A request is answered with this status and Ollama's error text."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Dialect:
    """What /api/generate and /api/chat do differently. `piece` takes what is said, the field `text`, and thought."""

    struct: str
    nameless: tuple[int, str]
    prompt: Callable[[Body], str]
    text: str
    piece: Callable[[str, str], Body]


GENERATE = Dialect(
    struct="GenerateRequest",
    nameless=(404, "model '' not found"),
    prompt=lambda body: body.get("prompt") or "",
    text="response",
    piece=lambda said, thought: {"response": said, **_thinking(thought)},
)
CHAT = Dialect(
    struct="ChatRequest",
    nameless=(400, "model is required"),
    prompt=lambda body: "\n".join(f"{m.get('role')}: {m.get('content') or ''}" for m in body.get("messages") or []),
    text="content",
    piece=lambda said, thought: {"message": {"role": "assistant", "content": said, **_thinking(thought)}},
)


def parse(raw: bytes, struct: str) -> Body:
    """The request's JSON object; ApiError 400 where there is none or a field has the wrong type."""
    if not raw.strip():
        raise ApiError(400, "missing request body")
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise ApiError(400, _json_words(raw, error)) from None
    if not isinstance(body, dict):
        raise ApiError(400, _mismatch(body, f"value of type api.{struct}"))
    for name, (kind, go_name) in _FIELDS.items():
        if body.get(name) is not None and not isinstance(body[name], kind):
            raise ApiError(400, _mismatch(body[name], f"struct field {struct}.{name} of type {go_name}"))
    for message in body.get("messages") or []:
        if not isinstance(message, dict):
            raise ApiError(400, _mismatch(message, f"struct field {struct}.messages of type api.Alias"))
    return body


def model_of(body: Body, nameless: tuple[int, str]) -> tuple[str, Model]:
    """The model that the request names; ApiError `nameless` or 404."""
    if not (name := body.get("model") or ""):
        raise ApiError(*nameless)
    if (model := models.find(name)) is None:
        raise ApiError(404, f"model '{name}' not found")
    return name, model


def job_of(body: Body, dialect: Dialect, config: Config) -> Job:
    """The work a generate or chat request asks for; ApiError 400, 404 or, for an option's type, 500."""
    alive = _keep_alive(body)
    name, model = model_of(body, dialect.nameless)
    fault, think = config.physics.fault, body.get("think")
    able = "thinking" in fault.capabilities
    if think and not able:
        raise ApiError(400, f'"{name}" does not support thinking')
    try:
        asked = options.read(body.get("options") or {}, config.context_length, model.context)
    except options.OptionTypeError as error:
        raise ApiError(500, str(error)) from None
    return Job(
        model=model,
        name=name,
        prompt=dialect.prompt(body),
        load=fault.load(asked.load),
        keep_alive=alive,
        budget=asked.num_predict,
        seed=asked.seed,
        thinks=able and think is not False,
    )


def records(job: Job, dialect: Dialect, body: Body, pieces: Iterator[Token | Finished]) -> Iterator[Body]:
    """The stream's objects: one per token, then one with the metrics."""
    for piece in pieces:
        if isinstance(piece, Token):
            yield (Garbled if piece.garbled else dict)(_token(job.name, dialect, piece))
        else:
            context = dialect is GENERATE and not body.get("raw")
            count = prompt_tokens(job) + piece.metrics.get("eval_count", 0)
            yield {
                **idle(job.name, dialect, piece.reason),
                **({"context": list(range(count))} if context else {}),
                **piece.metrics,
            }


def whole(dialect: Dialect, parts: Iterator[Body]) -> Body:
    """One object in place of a stream: the last record with all of the text."""
    said, thought, record = "", "", {}
    for record in parts:
        piece = record.get("message", record)
        said, thought = said + piece[dialect.text], thought + piece.get("thinking", "")
    return {**record, **dialect.piece(said, thought)}


def idle(name: str, dialect: Dialect, reason: str) -> Body:
    """The answer that ends a stream, or is all of it after a load or unload: no text and no metrics."""
    return {**_record(name, dialect.piece("", ""), done=True), "done_reason": reason}


def running(runners: list[Runner]) -> Body:
    """The body of /api/ps. Sizes are bytes of weights and of the context's cache, `size_vram` the part on the GPU."""
    return {"models": [_loaded(runner) for runner in runners]}


def _loaded(runner: Runner) -> Body:
    return {
        "name": runner.name,
        "model": runner.name,
        "size": runner.placement.size,
        "digest": runner.model.digest,
        "details": runner.model.details,
        "expires_at": _until(runner.expires),
        "size_vram": runner.placement.size_vram,
        "context_length": runner.load.num_ctx,
    }


def _keep_alive(body: Body) -> float | None:
    if body.get("keep_alive") is None:
        return None
    try:
        return durations.keep_alive(body["keep_alive"])
    except ValueError as error:
        raise ApiError(400, str(error)) from None


def _token(name: str, dialect: Dialect, token: Token) -> Body:
    said, thought = ("", token.text) if token.thought else (token.text, "")
    return _record(name, dialect.piece(said, thought), done=False)


def _thinking(text: str) -> Body:
    return {"thinking": text} if text else {}


def _record(name: str, piece: Body, *, done: bool) -> Body:
    return {"model": name, "created_at": _now(), **piece, "done": done}


def _now() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def _until(expires: float) -> str:
    if math.isinf(expires):  # Go's longest duration from now, which is what Ollama reports for "never"
        moment = datetime.now(UTC) + timedelta(seconds=2**63 / 1e9)
    else:
        moment = datetime.fromtimestamp(expires, UTC)
    return moment.isoformat().replace("+00:00", "Z")


def _mismatch(value: object, target: str) -> str:
    return f"json: cannot unmarshal {_GO_NAMES.get(type(value), 'null')} into Go {target}"


def _json_words(raw: bytes, error: ValueError) -> str:
    position = getattr(error, "pos", None)
    if position is None:
        return "invalid UTF-8 in request body"
    rest = raw.decode()[position:]
    return f"invalid character {rest[0]!r} looking for beginning of value" if rest else "unexpected EOF"
