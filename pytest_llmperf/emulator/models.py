"""The models every emulated instance has, and how Ollama describes them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

_MODIFIED = "2025-11-01T12:00:00Z"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model. `rate` is its decode rate alone on the device, tok/s; `kv_bytes` the cache a token of context needs."""

    name: str
    aliases: tuple[str, ...]
    rate: float
    family: str
    parameters: int
    parameter_size: str
    quantization: str
    size: int
    layers: int
    context: int
    embedding: int
    kv_bytes: int
    capabilities: tuple[str, ...]
    template: str

    @property
    def digest(self) -> str:
        """A stable hex digest, the same for every alias."""
        return hashlib.sha256(self.name.encode()).hexdigest()

    @property
    def details(self) -> dict[str, object]:
        """The `details` object of /api/tags, /api/ps and /api/show."""
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.family,
            "families": [self.family],
            "parameter_size": self.parameter_size,
            "quantization_level": self.quantization,
        }


_CATALOGUE = (
    Model(
        name="gemma3:4b-it-q4_K_M",
        aliases=("gemma3:latest",),
        rate=100.0,  # TR116: Gemma 3 alone on the device
        family="gemma3",
        parameters=4_299_915_632,
        parameter_size="4.3B",
        quantization="Q4_K_M",
        size=3_338_801_804,
        layers=34,
        context=131_072,
        embedding=2560,
        kv_bytes=139_264,
        capabilities=("completion",),
        template="<start_of_turn>user\n{{ .Prompt }}<end_of_turn>\n<start_of_turn>model\n",
    ),
    Model(
        name="llama3.1:8b-instruct-q4_0",
        aliases=("llama3.1:8b",),
        rate=68.0,
        family="llama",
        parameters=8_030_261_312,
        parameter_size="8.0B",
        quantization="Q4_0",
        size=4_661_230_766,
        layers=32,
        context=131_072,
        embedding=4096,
        kv_bytes=131_072,
        capabilities=("completion", "tools"),
        template="<|start_header_id|>user<|end_header_id|>\n\n{{ .Prompt }}<|eot_id|>",
    ),
    Model(
        name="qwen2.5:7b-instruct-q4_K_M",
        aliases=("qwen2.5:7b",),
        rate=76.0,
        family="qwen2",
        parameters=7_615_616_512,
        parameter_size="7.6B",
        quantization="Q4_K_M",
        size=4_683_087_332,
        layers=28,
        context=32_768,
        embedding=3584,
        kv_bytes=57_344,
        capabilities=("completion", "tools"),
        template="<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n",
    ),
)

MODELS: dict[str, Model] = {name: model for model in _CATALOGUE for name in (model.name, *model.aliases)}


def find(name: str) -> Model | None:
    """The model of that name; a missing tag means `latest`, as in Ollama."""
    return MODELS.get(name if ":" in name else f"{name}:latest")


def tags(extra: tuple[str, ...] = ()) -> dict[str, object]:
    """The body of /api/tags: every name, aliases too. `extra` are capabilities beside a model's own."""
    return {
        "models": [
            {
                "name": name,
                "model": name,
                "modified_at": _MODIFIED,
                "size": model.size,
                "digest": model.digest,
                "details": model.details,
                "capabilities": [*model.capabilities, *extra],
            }
            for name, model in MODELS.items()
        ]
    }


def show(model: Model, extra: tuple[str, ...] = ()) -> dict[str, object]:
    """The body of /api/show, which has no digest in Ollama either. `extra` are capabilities beside the model's own."""
    return {
        "modelfile": f"# Modelfile of an emulated model\nFROM sha256-{model.digest}\nTEMPLATE {model.template!r}\n",
        "template": model.template,
        "details": model.details,
        "model_info": {
            "general.architecture": model.family,
            "general.parameter_count": model.parameters,
            f"{model.family}.block_count": model.layers,
            f"{model.family}.context_length": model.context,
            f"{model.family}.embedding_length": model.embedding,
        },
        "capabilities": [*model.capabilities, *extra],
        "modified_at": _MODIFIED,
    }
