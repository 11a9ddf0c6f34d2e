"""Recipes of recurrent language models."""

from dataclasses import replace
from typing import Any

from firth.config import suggest
from firth.errors import ConfigError
from firth.models import AWDLSTMConfig, ElmoConfig
from firth.models.elmo import PAPER_FILTERS
from firth.objectives import BidirectionalLM, CausalLM
from firth.recipes.settings import Recipe
from firth.recipes.text_settings import DataSettings, TokenizerSettings
from firth.training import SGD, AdamW, Schedule, Training

_ELMO: dict[str, dict[str, Any]] = {
    "tiny": {
        "projection_size": 64,
        "cell_size": 256,
        "filters": ((1, 32), (2, 32), (3, 64), (4, 128)),
        "num_highway": 1,
    },
    "mini": {"projection_size": 128, "cell_size": 1024, "num_highway": 1},
    "small": {"projection_size": 256, "cell_size": 2048, "num_highway": 1},
    "base": {"projection_size": 512, "cell_size": 4096, "num_highway": 2},
}
"""Mini, small and base are what the authors published as small, medium and original."""

_AWD: dict[str, dict[str, Any]] = {
    "tiny": {"embedding_size": 64, "hidden_size": 128, "num_layers": 2},
    "mini": {"embedding_size": 256, "hidden_size": 512},
    "small": {"embedding_size": 320, "hidden_size": 800},
    "base": {"embedding_size": 400, "hidden_size": 1150},
}
"""Base is the papers'."""


def elmo(size: str = "mini", vocab_size: int = 8192) -> Recipe:
    """ELMo's bidirectional language model (Peters et al. 2018, section 3).

    Base is the original, mini and small are the authors' smaller models (13.6M and 28.0M
    parameters, without the softmax). The `vocab_size` most frequent words are predicted;
    a sampled softmax in training where that saves something.

    Departures, for small corpora: each document (cut to 64 words) is a sequence of its own, begun
    afresh, instead of streams of 20 words a step (`data.packing streams` is the paper's way);
    AdamW with a trapezoid instead of Adagrad (`training.optimizer.type Adagrad` with a constant
    rate and `training.clip 0.5` is the program's); 1,024 words a batch, which at equal time is well
    ahead of 4,096. In pre-training the 200,000 most frequent words are spelled, those that are seen
    twice, and others are read as `[UNK]` (`tokenizer.min_frequency 1` spells all); in use any word.
    """
    if size not in _ELMO:
        raise ConfigError(f"no size {size!r} of elmo; {suggest(size, _ELMO)}")
    return Recipe(
        name="elmo",
        model=ElmoConfig(
            vocab_size=max(200_000, vocab_size),
            output_size=vocab_size,
            **{"filters": PAPER_FILTERS, **_ELMO[size]},
            dropout=0.1,
            samples=0 if vocab_size < 16_384 else 8192,
        ),
        tokenizer=TokenizerSettings(kind="word", vocab_size=max(200_000, vocab_size)),
        objective=BidirectionalLM(),
        data=DataSettings(max_length=64),
        training=Training(
            steps=20_000,
            batch_tokens=1024,
            optimizer=AdamW(lr=2e-3, beta2=0.99),
            schedule=Schedule(shape="trapezoid", warmup=0.02, decay=0.5),
        ),
    )


def awd_lstm(size: str = "mini", vocab_size: int = 8192) -> Recipe:
    """AWD-LSTM with Adam, the language model of ULMFiT (Howard and Ruder 2018, section 4.1).

    Base has the papers' shape (3 layers of 1,150, embeddings of 400). Streams of 70 tokens with
    varying lengths, AR and TAR (alpha 2, beta 1), the ratios of ULMFiT's dropouts.

    Departures, for few passes over small corpora: half of ULMFiT's dropout (`model.dropout` is the
    multiplier), a rate of 3e-3 that falls over the second half instead of slanted triangular
    rates, 1,120 tokens a batch, a byte-level BPE vocabulary of 8,192. One step in twenty begins
    afresh instead of in the state before (`data.restart`): a network that never does learns within
    one trajectory of states, and texts that begin afresh, as all do later, are strange to it.
    """
    if size not in _AWD:
        raise ConfigError(f"no size {size!r} of awd-lstm; {suggest(size, _AWD)}")
    return Recipe(
        name="awd-lstm",
        model=AWDLSTMConfig(
            vocab_size=vocab_size,
            **_AWD[size],
            dropout=0.5,
            output_dropout=0.4,
            hidden_dropout=0.3,
            input_dropout=0.4,
            embedding_dropout=0.05,
            weight_dropout=0.5,
        ),
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=vocab_size),
        objective=CausalLM(ar=2.0, tar=1.0),
        data=DataSettings(packing="streams", max_length=70, vary=True, restart=0.05),
        training=Training(
            steps=20_000,
            batch_tokens=16 * 70,
            optimizer=AdamW(lr=3e-3, beta2=0.99),
            schedule=Schedule(shape="trapezoid", warmup=0.02, decay=0.5),
            clip=0.4,
        ),
    )


def ulmfit(size: str = "base", vocab_size: int = 8192) -> Recipe:
    """Fine-tuning of an AWD-LSTM on the text of a task (Howard and Ruder 2018, section 3.2).

    To be given a model to go on from (`--start RUN`), whose shape and vocabulary it takes.
    Discriminative rates (each layer 2.6 times slower than the one above it), slanted triangular
    rates (a tenth of the steps up, then down to 1/32), Adam with beta1 0.7 and beta2 0.99 and a
    peak of 0.004 (section 4.1).

    Departures: the vocabulary stays that of the general text (byte-level BPE leaves no word
    unknown) where the paper adds the words of the task; dropouts as in `awd-lstm`.
    """
    recipe = awd_lstm(size, vocab_size)
    return replace(
        recipe,
        name="ulmfit",
        training=Training(
            epochs=5,
            batch_tokens=recipe.training.batch_tokens,
            optimizer=AdamW(lr=4e-3, beta1=0.7, beta2=0.99, weight_decay=0.0),
            layer_decay=2.6,
            schedule=Schedule(shape="slanted", warmup=0.1, floor=1 / 32),
            clip=recipe.training.clip,
        ),
    )


def awd_lstm_2018(size: str = "base", vocab_size: int = 33_280) -> Recipe:
    """AWD-LSTM as Merity et al. 2018 train it on WikiText-2 (sections 4 and 5).

    NT-ASGD with a constant rate of 30 and a patience of 5 validations, 80 streams of 70 words, full
    dropouts, words as the vocabulary. WikiText is cut into words already: give it with
    `--documents line`.

    Departures: 20,000 steps instead of 750 passes; the second training with averaging from its
    first step on, which the paper calls fine-tuning, is left out.
    """
    recipe = awd_lstm(size, vocab_size)
    assert isinstance(recipe.model, AWDLSTMConfig)
    return Recipe(
        name="awd-lstm-2018",
        model=AWDLSTMConfig(vocab_size=vocab_size, **_AWD[size]),
        tokenizer=TokenizerSettings(kind="whitespace", vocab_size=vocab_size),
        objective=recipe.objective,
        data=replace(recipe.data, restart=0.0),
        training=Training(
            steps=20_000,
            batch_tokens=80 * 70,
            optimizer=SGD(lr=30.0),
            schedule=Schedule(shape="constant", warmup=0),
            clip=0.25,
            nonmonotone=5,
        ),
    )
