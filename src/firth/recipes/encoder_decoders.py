"""Recipes of encoder-decoders."""

from typing import Any

from firth.config import suggest
from firth.errors import ConfigError
from firth.models import EncoderDecoderConfig, Seq2SeqConfig
from firth.objectives import SequenceToSequence, SpanCorruption
from firth.recipes.settings import Recipe
from firth.recipes.shapes import gated_shape_of, shape_of
from firth.recipes.text_settings import TokenizerSettings
from firth.training import AdamW, Muon, Schedule, Training

_SEQ2SEQ: dict[str, dict[str, Any]] = {
    "tiny": {"embedding_size": 128, "hidden_size": 128, "num_layers": 1},
    "mini": {"embedding_size": 256, "hidden_size": 256, "num_layers": 1},
    "small": {"embedding_size": 512, "hidden_size": 512, "num_layers": 2},
    "base": {"embedding_size": 1000, "hidden_size": 1000, "num_layers": 4},
}
"""Base has the shape of Sutskever et al. 2014 and Luong et al. 2015."""


def seq2seq(size: str = "mini", vocab_size: int = 8192) -> Recipe:
    """LSTMs with the attention of Luong et al. 2015 ("general"), for pairs of texts.

    `model.attention none` is Sutskever et al. 2014, `model.attention additive` Bahdanau et al.
    2015, `model.input_feeding true` the rest of Luong's. The source is read from its end,
    dropout is 0.2, initialisation the papers'.

    Departures, for small corpora: one byte-level BPE vocabulary of 8,192 instead of two of 50,000
    words (30,000 of Bahdanau's), and one table for source, target and output (`model.tied false`
    for the papers' three); no input feeding by default, since it takes the steps one by one; AdamW
    up to 2e-3, falling over the second half, instead of SGD with 0.7 or 1.0 that is halved (or
    Adadelta); norms of gradients cut at 1 instead of 5; batches of 1,024 tokens of both sides
    instead of 128 pairs (80 of Bahdanau's).
    """
    if size not in _SEQ2SEQ:
        raise ConfigError(f"no size {size!r} of seq2seq; {suggest(size, _SEQ2SEQ)}")
    return Recipe(
        name="seq2seq",
        model=Seq2SeqConfig(vocab_size=vocab_size, **_SEQ2SEQ[size], tied=True),
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=vocab_size),
        objective=SequenceToSequence(),
        training=Training(
            steps=20_000,
            batch_tokens=1024,
            optimizer=AdamW(lr=2e-3, beta2=0.99, weight_decay=0.0),
            schedule=Schedule(shape="trapezoid", warmup=0.02, decay=0.5),
        ),
    )


def transformer(size: str = "mini", vocab_size: int = 8192) -> Recipe:
    """The Transformer (Vaswani et al. 2017), sections 3 and 5, at BERT's sizes, for pairs of texts.

    Post-norm, sinusoidal positions, embeddings scaled by sqrt(D) and shared by both sides and the
    output, Glorot initialisation, Adam with beta2 0.98 and epsilon 1e-9, inverse square root decay,
    dropout and label smoothing 0.1, one vocabulary of both languages.

    Departures, for small corpora: byte-level BPE of 8,192 instead of 37,000; batches of 1,024
    tokens of both sides instead of 50,000, for more steps on as much text; warm-up over a tenth of
    the run, up to 1e-3; dropout of the attention probabilities too, as in the published program; no
    averaging of checkpoints (`training.average`).
    """
    return Recipe(
        name="transformer",
        model=EncoderDecoderConfig(vocab_size=vocab_size, **shape_of(size)),
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=vocab_size),
        objective=SequenceToSequence(label_smoothing=0.1),
        training=Training(
            steps=20_000,
            batch_tokens=1024,
            optimizer=AdamW(lr=1e-3, beta2=0.98, eps=1e-9, weight_decay=0.0),
            schedule=Schedule(shape="inverse_sqrt", warmup=0.1),
            clip=0.0,
        ),
    )


def t5(size: str = "mini", vocab_size: int = 8192) -> Recipe:
    """T5 v1.1 (Raffel et al. 2020; Shazeer 2020), at BERT's sizes: an encoder and a decoder each.

    Pre-norm RMSNorm, relative position buckets, gated GELU, no biases, unscaled attention, an
    output matrix of its own, no dropout in pre-training; spans of 3 tokens, 15 % (section 3.3.4).

    Departures: Muon with AdamW for the rest instead of AdaFactor; a trapezoidal schedule; sequences
    of 128 tokens, opened by the vocabulary's first token, batches of 8,192; byte-level BPE of 8,192
    with 100 sentinels trained on the corpus instead of SentencePiece; intermediate size 2/3 of
    BERT's.
    """
    return Recipe(
        name="t5",
        model=EncoderDecoderConfig(
            vocab_size=vocab_size,
            **gated_shape_of(size),
            dropout=0.0,
            activation="gelu_tanh",
            gated=True,
            norm="pre",
            norm_kind="rms",
            norm_eps=1e-6,
            positions="relative",
            bias=False,
            tied=False,
            scale_embeddings=False,
            scale_scores=False,
        ),
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=vocab_size, sentinels=100),
        objective=SpanCorruption(),
        training=Training(
            steps=20_000,
            optimizer=Muon(rest=AdamW(lr=2e-3, beta2=0.95)),
            schedule=Schedule(shape="trapezoid", warmup=0.02, decay=0.5),
        ),
    )
