"""Random-weight llama models in GGUF, made on the spot: they give an engine real work and know nothing.

Written to version 3 of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SPECIALS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
WORDS = [f"\u2581{first}{second}" for first in SYLLABLES for second in SYLLABLES][::4][:765]
VOCABULARY = [*SPECIALS, *WORDS]

ALIGNMENT = 32  # bytes
F32, F16 = 0, 1  # types of a tensor
TYPE_CODES: dict[type, int] = {int: 4, float: 6, bool: 7, str: 8}  # of metadata; ints are unsigned
ARRAY, SIGNED = 9, 5

Scalar = bool | int | float | str


@dataclass(frozen=True)
class Shape:
    """Sizes of a llama model; `dim` and `ffn` are elements of a row."""

    layers: int
    dim: int
    heads: int
    kv_heads: int
    ffn: int

    @property
    def head_size(self) -> int:
        return self.dim // self.heads


SIZES = {
    "small": Shape(layers=4, dim=256, heads=8, kv_heads=4, ffn=704),
    "medium": Shape(layers=8, dim=512, heads=16, kv_heads=8, ffn=1408),
}


@dataclass(frozen=True)
class Tensor:
    """A named array; `dims` has the length of a row first, as GGUF does."""

    name: str
    dims: tuple[int, ...]
    kind: int
    data: bytes


def gguf(size: str, seed: int = 7) -> bytes:
    """The file of a model of `SIZES`: 7 MB for small, 49 MB for medium; equal arguments give equal bytes.

    Sampled greedily or with a `top_k` up to Ollama's default of 40, it answers in whole words until `num_predict`
    or the context ends: the end token and the byte tokens always have logit 0, below the best 40 of 765 random ones.
    """
    shape = SIZES[size]
    metadata = _metadata(f"random-{size}-{seed}", shape)
    tensors = list(_tensors(shape, random.Random(seed)))
    front = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    front += b"".join(_text(key) + _value(value) for key, value in metadata.items())
    bodies = [_padded(tensor.data) for tensor in tensors]
    offset = 0
    for tensor, body in zip(tensors, bodies, strict=True):
        front += _header(tensor, offset)
        offset += len(body)
    return b"".join([_padded(front), *bodies])


def _metadata(name: str, shape: Shape) -> dict[str, Scalar | list[str] | list[float] | list[int]]:
    return {
        "general.architecture": "llama",
        "general.name": name,
        "general.file_type": F16,
        "llama.context_length": 2048,
        "llama.embedding_length": shape.dim,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.ffn,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": shape.head_size,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": len(VOCABULARY),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": VOCABULARY,
        "tokenizer.ggml.scores": [-1000.0] * len(SPECIALS) + [-float(rank) for rank in range(len(WORDS))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(WORDS),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


def _tensors(shape: Shape, rng: random.Random) -> Iterator[Tensor]:
    dim, ffn, kv_dim = shape.dim, shape.ffn, shape.kv_heads * shape.head_size
    yield from _vocabulary_tensors(dim, rng)
    for layer in (f"blk.{number}." for number in range(shape.layers)):
        yield _norm(f"{layer}attn_norm.weight", dim)
        yield _matrix(f"{layer}attn_q.weight", (dim, dim), rng)
        yield _matrix(f"{layer}attn_k.weight", (dim, kv_dim), rng)
        yield _matrix(f"{layer}attn_v.weight", (dim, kv_dim), rng)
        yield _matrix(f"{layer}attn_output.weight", (dim, dim), rng)
        yield _norm(f"{layer}ffn_norm.weight", dim)
        yield _matrix(f"{layer}ffn_gate.weight", (dim, ffn), rng)
        yield _matrix(f"{layer}ffn_up.weight", (dim, ffn), rng)
        yield _matrix(f"{layer}ffn_down.weight", (ffn, dim), rng)
    yield _norm("output_norm.weight", dim)


def _vocabulary_tensors(dim: int, rng: random.Random) -> Iterator[Tensor]:
    """Embedding and output weights from the same bytes: the high half is the embedding, which the output leans against.

    So the word just said gets a lower logit, and greedy sampling never says one word for ever: Ollama ends a stream,
    without a final record, after 30 equal tokens.
    """
    noise = rng.randbytes(len(VOCABULARY) * dim)
    silent = len(SPECIALS) * dim
    embedding = _f16(noise, lambda byte: _uniform(byte >> 4, 16))
    against = _f16(
        noise[silent:], lambda byte: (_uniform(byte & 15, 16) - _uniform(byte >> 4, 16) / 2) / math.sqrt(dim)
    )
    yield Tensor("token_embd.weight", (dim, len(VOCABULARY)), F16, embedding)
    yield Tensor("output.weight", (dim, len(VOCABULARY)), F16, bytes(2 * silent) + against)


def _norm(name: str, dim: int) -> Tensor:
    return Tensor(name, (dim,), F32, struct.pack("<f", 1.0) * dim)


def _matrix(name: str, dims: tuple[int, int], rng: random.Random) -> Tensor:
    row = dims[0]
    data = _f16(rng.randbytes(math.prod(dims)), lambda byte: _uniform(byte, 256) / math.sqrt(row))
    return Tensor(name, dims, F16, data)


def _uniform(step: int, steps: int) -> float:
    """The middle of one of equal steps, scaled to mean 0 and standard deviation 1 over many."""
    return math.sqrt(12) * ((step + 0.5) / steps - 0.5)


def _f16(noise: bytes, weight: Callable[[int], float]) -> bytes:
    """One half-precision weight per byte, by `bytes.translate`: 0.3 s for medium where packing floats takes 2.8 s."""
    table = struct.pack("<256e", *map(weight, range(256)))
    data = bytearray(2 * len(noise))
    data[::2] = noise.translate(table[::2])
    data[1::2] = noise.translate(table[1::2])
    return bytes(data)


def _header(tensor: Tensor, offset: int) -> bytes:
    count = len(tensor.dims)
    return _text(tensor.name) + struct.pack(f"<I{count}QIQ", count, *tensor.dims, tensor.kind, offset)


def _value(value: Scalar | list[str] | list[float] | list[int]) -> bytes:
    if not isinstance(value, list):
        return struct.pack("<I", TYPE_CODES[type(value)]) + _scalar(value)
    kind = type(value[0])
    code = SIGNED if kind is int else TYPE_CODES[kind]
    return struct.pack("<IIQ", ARRAY, code, len(value)) + b"".join(map(_scalar, value))


def _scalar(value: Scalar) -> bytes:
    if isinstance(value, str):
        return _text(value)
    return struct.pack({bool: "<?", int: "<I", float: "<f"}[type(value)], value)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)
