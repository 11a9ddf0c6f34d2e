"""One function per system: a resolved recipe, citing its paper and listing departures."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from firth.config import merge, nested, suggest
from firth.errors import ConfigError
from firth.models import BertConfig, GPTConfig, ModelConfig
from firth.models.bert import SIZES, modern
from firth.objectives import CausalLM, MaskedLM, Objective
from firth.training import BUDGETS, AdamW, Muon, Schedule, Training

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """The vocabulary to train on the corpus."""

    kind: Literal["wordpiece", "bpe", "unigram", "word"] = "wordpiece"
    vocab_size: int = 8192
    lowercase: bool = False
    strip_accents: bool = False
    max_bytes: int = 1_000_000_000
    """Most text to learn from; of more, documents spread evenly over all are taken."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How the corpus becomes sequences."""

    max_length: int = 128
    """Longest training sequence in tokens, special tokens included."""
    valid: float = 0.01
    """Share of the documents held out, where no validation files are given."""
    valid_tokens: int = 200_000
    """Tokens of the held-out text that each validation looks at."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a pre-training run depends on, beside its corpus."""

    name: str
    model: ModelConfig
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    objective: Objective = field(default_factory=MaskedLM)
    data: DataSettings = field(default_factory=DataSettings)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        if self.data.max_length > self.model.max_length:
            raise ConfigError(
                f"data.max_length {self.data.max_length} is more than the model's window "
                f"(model.max_length {self.model.max_length})"
            )
        if self.training.batch_tokens < self.data.max_length:
            raise ConfigError(
                f"training.batch_tokens {self.training.batch_tokens} is less than one sequence "
                f"(data.max_length {self.data.max_length})"
            )

    @property
    def max_length(self) -> int:
        """Longest sequence the trained model takes: learned positions must have been trained."""
        learned = self.model.positions == "learned"
        return self.data.max_length if learned else self.model.max_length

    def with_settings(self, settings: Mapping[str, Any], *, where: str = "") -> "Recipe":
        """The recipe with other settings; a budget takes the place of the one before.

        Args:
            settings: by dotted names, for instance ``{"training.minutes": 20}``, or nested.
            where: where they come from, for error messages.

        Raises:
            ConfigError: if a setting does not exist or has a wrong value.
        """
        tree = nested(settings)
        if set(tree.get("training", ())) & set(BUDGETS):
            tree["training"] = {**dict.fromkeys(BUDGETS), **tree["training"]}
        changed = merge(self, tree, where=where)
        for setting, reason in _without_effect(changed, tree):
            logger.warning("%s%s has no effect: %s", where and f"{where}: ", setting, reason)
        return changed

    def with_vocabulary(self, size: int) -> "Recipe":
        """The recipe for a vocabulary of `size` tokens, as a tokenizer turned out to have."""
        return replace(
            self,
            model=replace(self.model, vocab_size=size),
            tokenizer=replace(self.tokenizer, vocab_size=size),
        )


def bert(size: str = "mini", vocab_size: int = 8192) -> Recipe:
    """BERT (Devlin et al. 2019), section 3 and appendix A.2, at the sizes of Turc et al. 2019.

    Departures, for small corpora and machines: masked LM alone, without next-sentence prediction
    (Liu et al. 2019, section 4.2); sequences of 128 tokens throughout; a cased vocabulary of 8,192
    trained on the corpus; batches of 8,192 tokens; peak learning rate 1e-3 up to 4x256 and 5e-4
    above, beta2 0.98, warm-up 6 %; no dropout, since a short run sees its text only a few times
    (Geiping and Goldstein 2023, section 4.3; set `model.dropout` to 0.1 for many epochs).
    """
    model = _config(size, vocab_size)
    lr = 1e-3 if model.hidden_size <= 256 else 5e-4
    return Recipe(
        name="bert",
        model=model,
        tokenizer=TokenizerSettings(vocab_size=vocab_size),
        training=Training(steps=20_000, optimizer=AdamW(lr=lr), schedule=Schedule(warmup=0.06)),
    )


def modern_bert(size: str = "mini", vocab_size: int = 8192) -> Recipe:
    """ModernBERT (Warner et al. 2024), section 2.1, at BERT's sizes.

    Pre-norm, rotary positions, GeGLU, no biases, alternating local (128 tokens) and global
    attention; masking rate 30 % and a trapezoidal schedule as in its section 2.2.

    Departures: intermediate size 2/3 of BERT's, so that the gated layer has as many weights;
    Muon with AdamW for the rest instead of StableAdamW; the rate falls from 30 % to 15 %.
    """
    plain = _config(size, vocab_size)
    gated = _gated(plain.intermediate_size)
    model = modern(replace(plain, intermediate_size=gated, max_length=1024))
    return Recipe(
        name="modern-bert",
        model=model,
        tokenizer=TokenizerSettings(vocab_size=vocab_size),
        objective=MaskedLM(rate=0.3, final_rate=0.15),
        training=Training(
            steps=20_000, optimizer=Muon(), schedule=Schedule(shape="trapezoid", warmup=0.02)
        ),
    )


def gpt(size: str = "mini", vocab_size: int = 8192) -> Recipe:
    """A small decoder with the modern parts, trained left to right (Radford et al. 2018, eq. 1).

    Pre-norm RMSNorm and rotary positions (Touvron et al. 2023, section 2.2), GeGLU (Shazeer 2020),
    normalised queries and keys (Henry et al. 2020), output matrices that begin at zero, Muon for
    matrices and AdamW for the rest, a rate that falls to zero over the second half (Jordan et al.
    2024, modded-nanogpt); byte-level BPE as GPT-2. BERT's sizes, with an intermediate size of 2/3,
    so that the gated layer has as many weights; sequences of 128 tokens, batches of 8,192.
    """
    shape = _shape(size)
    model = GPTConfig(
        vocab_size=vocab_size,
        **{**shape, "intermediate_size": _gated(shape["intermediate_size"])},
        dropout=0.0,
        activation="gelu",
        gated=True,
        norm_kind="rms",
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
    shape = _shape(size)
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


RECIPES = {"bert": bert, "modern-bert": modern_bert, "gpt": gpt, "gpt2": gpt2}


def recipe(name: str, **arguments: Any) -> Recipe:
    """The recipe called `name`.

    Raises:
        ConfigError: if there is none.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; {suggest(name, RECIPES)}")
    return RECIPES[name](**arguments)


def _without_effect(
    chosen: Recipe, settings: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Those of the settings that the others make idle, each with the reason."""
    model, objective = chosen.model, chosen.objective
    rotary = model.positions == "rotary"
    idle = {"rotary_base": "" if rotary else "positions are learned"}
    if isinstance(model, BertConfig):
        windows = model.local_window > 0
        idle |= {
            "position_offset": "rotary positions have no table" if rotary else "",
            "rotary_base_global": idle["rotary_base"],
            "global_every": "" if windows else "without local_window all layers are global",
        }
        if rotary and not windows:
            idle["rotary_base_global"] = "without local_window every layer has rotary_base"
    for name, reason in idle.items():
        if reason and name in settings.get("model", ()):
            yield f"model.{name}", reason
    if (
        isinstance(objective, MaskedLM)
        and "final_rate" in settings.get("objective", ())
        and objective.final_rate == objective.rate
    ):
        yield "objective.final_rate", "it is the rate at the start"


def _shape(size: str) -> dict[str, Any]:
    if size not in SIZES:
        raise ConfigError(f"unknown size {size!r}; {suggest(size, SIZES)}")
    return SIZES[size]


def _gated(intermediate_size: int) -> int:
    """With as many weights in three matrices as in two, rounded up to a multiple of 64."""
    return -(-intermediate_size * 2 // 3 // 64) * 64


def _config(size: str, vocab_size: int) -> BertConfig:
    return BertConfig(vocab_size=vocab_size, **_shape(size), dropout=0.0)
