"""The emulator answers in the shapes of the genuine server, but for differences that are known by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any, NamedTuple

import httpx
import pytest

from tests.emulator.instances import Instance, environment

from .genuine import Genuine
from .test_setup import serving

MODELS = {"genuine": "small", "emulated": "llama3.1:8b"}
OPTIONS = {"num_predict": 16, "num_thread": 1}

CAPABILITIES = "newer: what a model is able to do"

Shape = dict[str, str]


class Request(NamedTuple):
    """Something to ask; MODEL stands for the server's own."""

    method: str
    path: str
    body: bytes | dict[str, Any] | None = None


def generate(**more: Any) -> Request:  # noqa: ANN401
    return Request("POST", "/api/generate", {"model": "MODEL", "options": OPTIONS, **more})


def chat(*words: str, **more: Any) -> Request:  # noqa: ANN401
    messages = [{"role": "user", "content": text} for text in words]
    return Request("POST", "/api/chat", {"model": "MODEL", "messages": messages, "options": OPTIONS, **more})


REQUESTS = {
    "root": Request("GET", "/"),
    "root, head": Request("HEAD", "/"),
    "nowhere": Request("GET", "/nowhere"),
    "version": Request("GET", "/api/version"),
    "tags": Request("GET", "/api/tags"),
    "nothing loaded": Request("GET", "/api/ps"),
    "show": Request("POST", "/api/show", {"model": "MODEL"}),
    "show, no such model": Request("POST", "/api/show", {"model": "zzz"}),
    "show, no model": Request("POST", "/api/show", {}),
    "load": generate(),
    "load by chat": chat(),
    "ps": Request("GET", "/api/ps"),
    "generate": generate(prompt="one two three four five"),
    "generate, whole": generate(prompt="six seven eight nine ten", stream=False),
    "generate, raw": generate(prompt="eleven twelve thirteen", raw=True),
    "generate, unknown option": generate(prompt="a b c", options={**OPTIONS, "seed": 3, "no_such": 1}),
    "generate, thinking": generate(prompt="d e f", think=True),
    "chat": chat("now is the time for all"),
    "chat, whole": chat("good men to come to the aid", stream=False),
    "chat, two messages": chat("of the party", "and to drink"),
    "chat, keep_alive": chat("a tune", keep_alive="1h"),
    "generate, no such model": Request("POST", "/api/generate", {"model": "zzz", "prompt": "x"}),
    "chat, no such model": Request("POST", "/api/chat", {"model": "zzz", "messages": []}),
    "generate, no model": Request("POST", "/api/generate", {"prompt": "x"}),
    "chat, no model": Request("POST", "/api/chat", {"messages": []}),
    "model is a number": Request("POST", "/api/generate", {"model": 3}),
    "options are a list": Request("POST", "/api/chat", {"model": "MODEL", "options": []}),
    "message is no object": Request("POST", "/api/chat", {"model": "MODEL", "messages": ["x"]}),
    "no body": Request("POST", "/api/generate", b""),
    "half a body": Request("POST", "/api/generate", b"{"),
    "body is text": Request("POST", "/api/chat", b"hello"),
    "body is a list": Request("POST", "/api/chat", b"[]"),
    "keep_alive without unit": generate(keep_alive="300"),
    "keep_alive is no duration": chat("x", keep_alive="abc"),
    "option of the wrong type": generate(prompt="x", options={"num_ctx": "512"}),
    "unload": generate(keep_alive=0),
    "unload by chat": chat(keep_alive="0s"),
}

# what came between 0.5.4, which the genuine server is, and 0.33.0, which the emulator says it is
KNOWN = {
    "tags": {".models[].capabilities": CAPABILITIES, ".models[].capabilities[]": CAPABILITIES},
    "show": {".capabilities": CAPABILITIES, ".capabilities[]": CAPABILITIES},
    "ps": {".models[].context_length": "newer: the context in force"},
    "chat, no such model": {".error": "newer: the same words as generate's"},
    "generate, thinking": {"status": "newer: a model that can't is a 400, where 0.5.4 ignores an unknown field"},
}


def shape(answer: httpx.Response) -> Shape:
    """Status, content type, and by path the JSON types of the first and last record; texts stand for themselves."""
    found = {"status": str(answer.status_code), "content type": answer.headers.get("content-type", "none")}
    if not found["content type"].startswith("application/"):
        return found | {"text": answer.text}
    first, *_, last = [json.loads(line) for line in answer.text.splitlines() * 2]
    ends = {"": last} if first == last else {"first": first, "last": last}
    return found | {path: kind for name, record in ends.items() for path, kind in kinds(name, record)}


def kinds(path: str, value: object) -> Iterator[tuple[str, str]]:
    yield path, str(value) if path.endswith(".error") else type(value).__name__
    if isinstance(value, Mapping) and not path.endswith(".model_info"):  # whose keys are the model's own
        for name, inner in value.items():
            yield from kinds(f"{path}.{name}", inner)
    elif isinstance(value, list) and value:
        yield from kinds(f"{path}[]", value[0])


def ask(client: httpx.Client, model: str, request: Request) -> httpx.Response:
    content = request.body if isinstance(request.body, bytes) else json.dumps(request.body).encode()
    named = content.replace(b'"MODEL"', json.dumps(model).encode())
    return client.request(request.method, request.path, content=named if request.method == "POST" else None)


@pytest.fixture(scope="module")
def servers(genuine_ollama: Genuine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx.Client]]:
    folder = tmp_path_factory.mktemp("servers")
    with ExitStack() as running:
        genuine, _ = running.enter_context(serving(genuine_ollama, folder))
        emulator = Instance.start(environment(folder, "agent1", "speed=20", {}))
        running.callback(emulator.stop)
        emulator.wait_until_ready()
        emulated = running.enter_context(httpx.Client(base_url=f"http://{emulator.address}", timeout=60))
        yield {"genuine": genuine, "emulated": emulated}


@pytest.fixture(scope="module")
def shapes(servers: dict[str, httpx.Client]) -> dict[str, dict[str, Shape]]:
    """By request, then by server: each is asked all of it in order, so that a model is loaded where it should be."""
    return {
        name: {server: shape(ask(client, MODELS[server], request)) for server, client in servers.items()}
        for name, request in REQUESTS.items()
    }


@pytest.mark.parametrize("name", REQUESTS)
def test_the_shapes_differ_only_where_it_is_known(shapes: dict[str, dict[str, Shape]], name: str) -> None:
    genuine, emulated = shapes[name]["genuine"], shapes[name]["emulated"]
    alike = genuine["status"] == emulated["status"]  # else all the rest differs
    paths = sorted(genuine.keys() | emulated.keys()) if alike else ["status"]
    both = {path: (genuine.get(path, "absent"), emulated.get(path, "absent")) for path in paths}
    differences = {path: pair for path, pair in both.items() if pair[0] != pair[1]}
    assert differences.keys() == KNOWN.get(name, {}).keys(), differences


def test_every_known_difference_is_one_of_a_request() -> None:
    assert KNOWN.keys() <= REQUESTS.keys()


LIVES_ON = [
    (["1h", None], 3600),  # what a request has set stays until another one names it
    (["1h", 120], 120),
    ([600, -1], 2**63 / 1e9),
]


@pytest.mark.parametrize("server", MODELS)
@pytest.mark.parametrize(("keep_alives", "seconds"), LIVES_ON)
def test_a_model_lives_on_as_keep_alive_says(
    servers: dict[str, httpx.Client], server: str, keep_alives: list[object], seconds: float
) -> None:
    for keep_alive in keep_alives:
        ask(servers[server], MODELS[server], chat("go on", keep_alive=keep_alive))
    (model,) = servers[server].get("/api/ps").json()["models"]
    left = datetime.fromisoformat(model["expires_at"]) - datetime.now(UTC)
    assert left.total_seconds() == pytest.approx(seconds, abs=30)


@pytest.mark.parametrize("server", MODELS)
@pytest.mark.parametrize(("keep_alive", "reason"), [("900ms", "unload"), (1.5, "load")])
def test_less_than_a_second_to_live_is_an_unload(
    servers: dict[str, httpx.Client], server: str, keep_alive: object, reason: str
) -> None:
    answer = ask(servers[server], MODELS[server], generate(keep_alive=keep_alive))
    assert answer.json()["done_reason"] == reason
