"""One more token of each text: a decoder's layers as plain products of weights laid out for them.

A step of one token is a hundred small calls, and what the modules do around them, for training's
sake, takes about as long as they do. Of a few rows, MKL copies a matrix into blocks whenever it
multiplies, which is much of the work. `benchmarks/bench_generation.py` measures both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from firth.device import packs_float32
from firth.models import GPT, EncoderDecoder
from firth.models.cache import Cache, LayerCache
from firth.models.encoder_decoder import Embeddings, Stack
from firth.models.gpt import GPTEmbeddings
from firth.models.layers import ACTIVATIONS, Dropout, FeedForward
from firth.models.norms import LayerNorm, RMSNorm
from firth.models.positions import DistanceBias, rotary_tables
from firth.models.transformer import Block, CrossAttention, NormPlacement, SelfAttention

Decoder = GPT | EncoderDecoder

_IN_BLOCKS = range(3, 49)
"""Rows for which the blocks are made before. Fewer are multiplied as vectors, without blocks; of
more, the copy is little of the work."""
_MOST_BYTES = 1 << 30
"""Of a model's weights: those that are laid out are a second copy of them."""
_KNOWN = (
    *(GPT, GPTEmbeddings, EncoderDecoder, Embeddings, Stack, DistanceBias),
    *(Block, SelfAttention, CrossAttention, FeedForward, LayerNorm, RMSNorm, Dropout),
    *(nn.Linear, nn.Embedding, nn.Identity, nn.ModuleList),
)
"""Modules that do what is done here. A layer in place of one may do something else."""


@dataclass(frozen=True)
class _Seen:
    """What all layers are told of the step."""

    rotary: tuple[Tensor, Tensor] | None
    distances: Tensor | None
    """(H, 2 room - 1); see `DistanceBias`."""


_Sublayer = Callable[[Tensor, LayerCache, _Seen], Tensor]


class Step:
    """The scores of the next token from one more token of each sequence."""

    @torch.no_grad()
    def __init__(self, model: Decoder, room: int, rows: int | None = None) -> None:
        """Reads the weights as they are now.

        Args:
            model: on the CPU, in float32.
            room: most tokens of a sequence.
            rows: sequences that the weights are laid out for; None to take them as they lie.
        """
        stack = model.decoder if isinstance(model, EncoderDecoder) else model
        self.embeddings = model.embeddings
        self.layers = [_sublayers(cast(Block, block), rows) for block in stack.layers]
        self.final_norm = _normed(stack.final_norm)
        self.score = product(model.output_matrix, None, rows)
        self.rotary = self.distances = self.scaled = None
        if isinstance(model, EncoderDecoder):
            bias = model.decoder.distances
            self.distances = None if bias is None else bias(room)
            self.scaled = model.scaled
        elif model.config.positions == "rotary":
            config, places = model.config, torch.arange(room)
            self.rotary = rotary_tables(places, config.size_of_head, config.rotary_base)

    def __call__(self, ids: Tensor, cache: Cache) -> Tensor:
        """(B) tokens to the (B, V) scores of those that follow."""
        positions = cache.advance()
        x = self.embeddings(ids, positions)
        tables = self.rotary
        rotary = None if tables is None else (tables[0][positions], tables[1][positions])
        seen = _Seen(rotary, self.distances)
        for sublayers, own in zip(self.layers, cache.layers, strict=True):
            for sublayer in sublayers:
                x = sublayer(x, own, seen)
        x = self.final_norm(x)
        return self.score(x if self.scaled is None else self.scaled(x))


def decoder_step(model: nn.Module, room: int, rows: int | None = None) -> Step | None:
    """The step of a decoder, or None where only its modules know how to make one.

    Args:
        model: any network.
        room: see `Step`.
        rows: see `Step`; the weights are taken as they lie where nothing is gained.
    """
    parts = list(model.modules())
    plain = all(type(one) in _KNOWN for one in parts)
    hooked = any(one._forward_hooks or one._forward_pre_hooks for one in parts)
    weights = list(model.parameters())
    fits = all(p.dtype == torch.float32 and p.device.type == "cpu" for p in weights)
    if not isinstance(model, Decoder) or not plain or hooked or not fits:
        return None
    size = sum(p.numel() * p.element_size() for p in weights)
    can = size <= _MOST_BYTES and packs_float32(weights[0].device)
    return Step(model, room, rows if can and rows in _IN_BLOCKS else None)


def product(weight: Tensor, bias: Tensor | None, rows: int | None) -> Callable[[Tensor], Tensor]:
    """`F.linear` with this (D_out, D_in) weight, in blocks for (rows, D_in) or as it lies."""
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if rows is not None:
        blocks = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
        multiply = torch.ops.mkl._mkl_linear.default
        return lambda x: multiply(x, blocks, weight, bias, rows)
    if bias is None:
        return partial(torch.mm, mat2=weight.t())
    return partial(torch.addmm, bias, mat2=weight.t())


def _sublayers(block: Block, rows: int | None) -> list[_Sublayer]:
    around = partial(_around, placement=block.placement)
    found = [around(_attention(block.attention, rows), block.attention_norm)]
    if block.cross is not None:
        assert block.cross_norm is not None
        found.append(around(_cross(block.cross, rows), block.cross_norm))
    return [*found, around(_feed_forward(block.feed_forward, rows), block.feed_forward_norm)]


def _around(sublayer: _Sublayer, norm: nn.Module, placement: NormPlacement) -> _Sublayer:
    """See `Block`; the states are the step's own, and written over."""
    normed = _normed(norm)
    if placement == "post":
        return lambda x, own, seen: normed(x.add_(sublayer(x, own, seen)))
    return lambda x, own, seen: x.add_(sublayer(normed(x), own, seen))


def _normed(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    if not isinstance(norm, LayerNorm):
        return norm.forward
    weight, bias = norm.weight.detach(), None if norm.bias is None else norm.bias.detach()
    return lambda x: torch.layer_norm(x, weight.shape, weight, bias, norm.eps)


def _linear(layer: nn.Linear, rows: int | None) -> Callable[[Tensor], Tensor]:
    return product(layer.weight, layer.bias, rows)


def _attention(attention: SelfAttention, rows: int | None) -> _Sublayer:
    qkv, out = _linear(attention.qkv, rows), _linear(attention.out, rows)
    how, size = attention.scores, attention.head_size

    def sublayer(x: Tensor, own: LayerCache, seen: _Seen) -> Tensor:
        columns = attention.placed(qkv(x).view(len(x), -1, size), seen.rotary)
        return out(own.attend_next(columns, how, seen.distances).flatten(1))

    return sublayer


def _cross(cross: CrossAttention, rows: int | None) -> _Sublayer:
    query, out = _linear(cross.q, rows), _linear(cross.out, rows)
    how, size = cross.scores, cross.head_size

    def sublayer(x: Tensor, own: LayerCache, _seen: _Seen) -> Tensor:
        return out(own.attend_source(query(x).view(len(x), -1, size), how).flatten(1))

    return sublayer


def _feed_forward(layer: FeedForward, rows: int | None) -> _Sublayer:
    up, down = _linear(layer.up, rows), _linear(layer.down, rows)
    act = ACTIVATIONS[layer.activation]

    def plain(x: Tensor, _own: LayerCache, _seen: _Seen) -> Tensor:
        return down(act(up(x)))

    def gated(x: Tensor, _own: LayerCache, _seen: _Seen) -> Tensor:
        y, gate = up(x).chunk(2, dim=-1)
        return down(act(y) * gate)

    return gated if layer.gated else plain
