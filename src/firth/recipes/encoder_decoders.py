"""Recipes of encoder-decoders."""

from firth.models import EncoderDecoderConfig
from firth.objectives import SequenceToSequence, SpanCorruption
from firth.recipes.settings import Recipe, TokenizerSettings
from firth.recipes.shapes import gated_shape_of, shape_of
from firth.training import AdamW, Muon, Schedule, Training


def transformer(size: str = "mini", vocab_size: int = 8192) -> Recipe:
    """The Transformer (Vaswani et al. 2017), sections 3 and 5, at BERT's sizes, for pairs of texts.

    Post-norm, sinusoidal positions, embeddings scaled by sqrt(D) and shared by both sides and the
    output, Glorot initialisation, Adam with beta2 0.98 and epsilon 1e-9, inverse square root decay,
    dropout and label smoothing 0.1, one vocabulary of both languages.

    Departures, for small corpora: byte-level BPE of 8,192 instead of 37,000; batches of 4,096
    tokens of both sides; warm-up over a tenth of the run, up to 1e-3; dropout of the attention
    probabilities too, as in the published program; no averaging of checkpoints.
    """
    return Recipe(
        name="transformer",
        model=EncoderDecoderConfig(vocab_size=vocab_size, **shape_of(size)),
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=vocab_size),
        objective=SequenceToSequence(label_smoothing=0.1),
        training=Training(
            steps=20_000,
            batch_tokens=4096,
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
