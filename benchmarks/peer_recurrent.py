"""ELMo's and AWD-LSTM's networks from PyTorch's own modules, the obvious way."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


class PlainBiLM(nn.Module):
    """Convolutions over words' characters, projected `nn.LSTM`s, a full softmax.

    The obvious way convolves all 50 characters of every word; `distinct` does so once for each
    distinct word of a batch, up to the end of the longest.
    """

    def __init__(self, config: Any, tokenizer: Any, *, distinct: bool) -> None:
        super().__init__()
        from firth.models.characters import NUM_CHARACTERS, PADDING, Spellings

        self.distinct, self.padding = distinct, PADDING
        self.config = config
        words = tokenizer.open()
        table = Spellings(words, config.max_characters).of(np.arange(len(words)))
        self.spelled = torch.from_numpy(table).long()
        self.characters = nn.Embedding(NUM_CHARACTERS, config.character_dim)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.character_dim, number, width) for width, number in config.filters
        )
        size = sum(number for _, number in config.filters)
        self.new = nn.ModuleList(nn.Linear(size, size) for _ in range(config.num_highway))
        self.gate = nn.ModuleList(nn.Linear(size, size) for _ in range(config.num_highway))
        self.project = nn.Linear(size, config.projection_size)
        self.lstms = nn.ModuleList(
            nn.LSTM(config.projection_size, config.cell_size, proj_size=config.projection_size)
            for _ in range(2 * config.num_layers)
        )
        self.head = nn.Linear(config.projection_size, config.output_size)
        self.drop = nn.Dropout(config.dropout)
        self.extra_parameters = 4 * config.cell_size * 2 * config.num_layers
        """nn.LSTM has two biases where one would do."""

    def loss(self, batch: Any) -> Tensor:
        """Mean of both directions' losses; neither carries a state on, which firth's does."""
        streams = batch.num_sequences
        ids = batch.input_ids.view(streams, -1)
        x = self.embed(batch.input_ids).view(streams, ids.shape[1], -1).transpose(0, 1)
        targets = batch.targets.view(streams, -1)
        forward, backward = x, x.flip(0)
        for i in range(self.config.num_layers):
            y, _ = self.lstms[2 * i](self.drop(forward))
            z, _ = self.lstms[2 * i + 1](self.drop(backward))
            forward, backward = (y, z) if i == 0 else (y + forward, z + backward)
        backward = backward.flip(0)
        vocabulary = self.config.output_size
        after = torch.where(targets < vocabulary, targets, 1)
        before = torch.where(ids < vocabulary, ids, 1)
        first = F.cross_entropy(
            self.head(self.drop(forward)).flatten(0, 1).float(), after.t().flatten()
        )
        second = F.cross_entropy(
            self.head(self.drop(backward[1:])).flatten(0, 1).float(), before[:, :-1].t().flatten()
        )
        return (first + second) / 2

    def embed(self, ids: Tensor) -> Tensor:
        if not self.distinct:
            return self.spell(self.spelled[ids])
        known, place = ids.unique(return_inverse=True)
        spelled = self.spelled[known]
        used = int((spelled != self.padding).sum(1).max())
        used += max(convolution.kernel_size[0] for convolution in self.convolutions)
        return self.spell(spelled[:, :used])[place]

    def spell(self, characters: Tensor) -> Tensor:
        """(n, up to 50) characters to (n, P)."""
        x = self.characters(characters).transpose(1, 2)  # (n, dim, 50)
        y = torch.cat([F.relu(conv(x).amax(2)) for conv in self.convolutions], 1)
        for new, gate in zip(self.new, self.gate, strict=True):
            share = torch.sigmoid(gate(y))
            y = share * F.relu(new(y)) + (1 - share) * y
        return self.project(y)


class PlainAWD(nn.Module):
    """`nn.LSTM`s whose recurrent matrices are dropped by `functional_call`, a tied softmax."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        inner = [config.hidden_size] * (config.num_layers - 1)
        sizes = [config.embedding_size, *inner, config.embedding_size]
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        self.lstms = nn.ModuleList(
            nn.LSTM(sizes[i], sizes[i + 1]) for i in range(config.num_layers)
        )
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.states: list[Any] = [None] * config.num_layers
        self.extra_parameters = sum(4 * size for size in sizes[1:])

    def loss(self, batch: Any) -> Tensor:
        """Cross-entropy with AR (2) and TAR (1)."""
        config = self.config
        ids = batch.input_ids.view(batch.num_sequences, -1).t()
        rate = config.embedding_dropout * config.dropout
        kept = torch.rand(config.vocab_size, 1).ge(rate) / (1 - rate)
        x = F.embedding(ids, self.embeddings.weight * kept)
        x = locked(x, config.input_dropout * config.dropout)
        raw = x
        for i, lstm in enumerate(self.lstms):
            weights = dict(lstm.named_parameters())
            dropped = F.dropout(weights["weight_hh_l0"], config.weight_dropout * config.dropout)
            state = () if self.states[i] is None else (self.states[i],)
            raw, after = functional_call(lstm, {**weights, "weight_hh_l0": dropped}, (x, *state))
            self.states[i] = tuple(one.detach() for one in after)
            top = i + 1 == len(self.lstms)
            x = locked(
                raw, config.dropout * (config.output_dropout if top else config.hidden_dropout)
            )
        scores = F.linear(x.flatten(0, 1), self.embeddings.weight, self.bias)
        targets = batch.targets.view(batch.num_sequences, -1).t().flatten()
        loss = F.cross_entropy(scores.float(), targets)
        jumps = (raw[1:] - raw[:-1]).float().square().mean()
        return loss + 2 * x.float().square().mean() + jumps


def locked(x: Tensor, rate: float) -> Tensor:
    """One mask for all steps."""
    return x * F.dropout(x.new_ones(1, *x.shape[1:]), rate)
