"""Recipes of decoders."""

from dataclasses import replace

from firth.models import GPTConfig
from firth.objectives import CausalLM, Hybrid
from firth.recipes.settings import Recipe
from firth.recipes.shapes import gated_shape_of, shape_of
from firth.recipes.text_settings import TokenizerSettings
from firth.training import AdamW, Muon, Schedule, Training


def gpt(size: str = "mini", vocab_size: int = 8192) -> Recipe:
    """A small decoder with the modern parts, trained left to right (Radford et al. 2018, eq. 1).

    Pre-norm without biases, rotary positions (Su et al. 2021), GeGLU (Shazeer 2020), normalised
    queries and keys (Henry et al. 2020; Dehghani et al. 2023), output matrices that begin at zero,
    Muon for matrices and AdamW for the rest, a rate that falls to zero over the second half (Jordan
    et al. 2024, modded-nanogpt); byte-level BPE as GPT-2. BERT's sizes, with an intermediate size
    of 2/3, so that the gated layer has as many weights; sequences of 128 tokens, batches of 8,192.
    """
    model = GPTConfig(
        vocab_size=vocab_size,
        **gated_shape_of(size),
        dropout=0.0,
        activation="gelu",
        gated=True,
        positions="rotary",
        bias=False,
        qk_norm=True,
        embedding_norm=True,
        output_init="zero",
    )
    return Recipe(
        name="gpt",
        model=model,
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=vocab_size),
        objective=CausalLM(),
        training=Training(
            steps=20_000,
            optimizer=Muon(lr=0.02, rest=AdamW(lr=3e-3, beta2=0.95)),
            schedule=Schedule(shape="trapezoid", warmup=0.02, decay=0.5),
        ),
    )


def gpt2(size: str = "mini", vocab_size: int = 8192) -> Recipe:
    """GPT-2 (Radford et al. 2019, section 2.3) at BERT's sizes.

    Pre-norm layers, learned positions, GELU, residual matrices scaled by 1/sqrt(2 L), byte-level
    BPE. Optimisation as GPT-3's small models (Brown et al. 2020, section 2.3 and appendix B): Adam
    with beta2 0.95, weight decay 0.1, clipping at 1, cosine decay to a tenth.

    Departures, for small corpora: sequences of 128 tokens, batches of 8,192 tokens, a vocabulary of
    8,192, no dropout, and rates that suit these sizes (1e-3 up to 4x256, 6e-4 above).
    """
    shape = shape_of(size)
    lr = 1e-3 if shape["hidden_size"] <= 256 else 6e-4
    return Recipe(
        name="gpt2",
        model=GPTConfig(vocab_size=vocab_size, **shape, dropout=0.0),
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=vocab_size),
        objective=CausalLM(),
        training=Training(
            steps=20_000,
            optimizer=AdamW(lr=lr, beta2=0.95, eps=1e-8, weight_decay=0.1),
            schedule=Schedule(shape="cosine", warmup=0.02, floor=0.1),
        ),
    )


def gpt1(size: str = "mini", vocab_size: int = 8192) -> Recipe:
    """GPT (Radford et al. 2018, section 4.1) at BERT's sizes.

    Post-norm layers, learned positions, GELU (in its tanh form, as in the program), byte-level BPE,
    normal 0.02 initialisation, Adam (beta2 0.999, epsilon 1e-8) with a cosine decay to zero.

    Departures, for small corpora: sequences of 128 tokens instead of 512, batches of 8,192 tokens
    instead of 32,768, a vocabulary of 8,192 instead of 40,000 merges (byte-level, so that nothing
    is unknown), no dropout, a warm-up of 2 % of the steps instead of 2,000 of a million, and a rate
    of 1e-3 up to 4x256 and 6e-4 above instead of 2.5e-4.
    """
    shape = shape_of(size)
    lr = 1e-3 if shape["hidden_size"] <= 256 else 6e-4
    return Recipe(
        name="gpt1",
        model=GPTConfig(
            vocab_size=vocab_size,
            **shape,
            dropout=0.0,
            max_length=512,
            activation="gelu_tanh",
            norm="post",
            output_init="plain",
        ),
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=vocab_size),
        objective=CausalLM(),
        training=Training(
            steps=20_000,
            optimizer=AdamW(lr=lr, beta2=0.999, eps=1e-8, weight_decay=0.01),
            schedule=Schedule(shape="cosine", warmup=0.02),
        ),
    )


def hybrid(size: str = "mini", vocab_size: int = 8192) -> Recipe:
    """GPT-BERT (Charpentier and Samuel 2024): masked and causal in one network, our own form.

    The decoder of `gpt`, which reads half of the sequences left to right and fills blanks in the
    others, predicted from the position before (section 2.1); span masks whose rate falls from 30 %
    to 15 % (section 2.3); averaged weights.

    Departures: rotary positions and normalised queries and keys instead of relative
    positions, attention gates and layer weighting; Muon instead of LAMB; batches of 8,192 tokens.
    """
    plain = gpt(size, vocab_size)
    assert isinstance(plain.model, GPTConfig)
    return replace(
        plain,
        name="hybrid",
        model=replace(plain.model, bidirectional=True),
        objective=Hybrid(),
        training=replace(plain.training, average=0.998),
    )
