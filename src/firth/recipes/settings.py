"""What a pre-training run depends on: the parts of a recipe, and settings laid over them."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from firth.config import merge, nested
from firth.errors import ConfigError
from firth.models import (
    AWDLSTMConfig,
    BertConfig,
    ElmoConfig,
    EncoderDecoderConfig,
    GPTConfig,
    ModelConfig,
    Seq2SeqConfig,
    StaticConfig,
)
from firth.objectives import (
    CausalLM,
    Hybrid,
    MaskedLM,
    Objective,
    PrefixLM,
    SentencePairs,
    SequenceToSequence,
    SpanBoundary,
    SpanCorruption,
    WordContext,
)
from firth.protocols import ABSENT, Vocabulary
from firth.recipes.text_settings import DataSettings, TokenizerSettings
from firth.training import BUDGETS, Training

logger = logging.getLogger(__name__)

_OF_WORD_VECTORS = {*BUDGETS, "batch_tokens", "seed", "accumulation"}
"""Training settings that static word vectors heed, or refuse."""

_OF_SHAPES = {
    "floor": ("linear", "cosine", "trapezoid", "slanted"),
    "decay": ("trapezoid",),
}
"""Settings of a schedule that only some shapes heed."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a pre-training run depends on, beside its corpus."""

    name: str
    """Of the recipe that the settings began from."""
    model: ModelConfig
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    objective: Objective = field(default_factory=MaskedLM)
    data: DataSettings = field(default_factory=DataSettings)
    training: Training = field(default_factory=Training)
    start: str | None = None
    """The model that training goes on from; None where it begins with random weights."""
    start_length: int | None = None
    """The longest sequence that model takes."""
    vectors: str | None = None
    """The word vectors that the tokens begin with; None where these are random, too."""

    def __post_init__(self) -> None:
        if self.start_length is not None and self.start is None:
            raise ConfigError(
                "start_length is that of the model that training goes on from, and there is none; "
                "leave it out (data.max_length is the longest sequence)"
            )
        if self.data.max_length > self.model.max_length:
            raise ConfigError(
                f"data.max_length {self.data.max_length} is more than the model's window "
                f"(model.max_length {self.model.max_length})"
            )
        shortest = 1 if self.data.packing == "streams" else 3 + self.objective.spare
        if self.data.max_length < shortest:
            raise ConfigError(
                f"data.max_length is {self.data.max_length}, expected at least {shortest}: special "
                "tokens and one of the text"
            )
        if self.training.batch_tokens < self.data.max_length:
            raise ConfigError(
                f"training.batch_tokens {self.training.batch_tokens} is less than one sequence "
                f"(data.max_length {self.data.max_length})"
            )
        _check_objective(self)

    @property
    def max_length(self) -> int:
        """Longest sequence the trained model takes: learned positions must have been trained."""
        if self.model.positions != "learned":
            return self.model.max_length
        return max(self.data.max_length, self.start_length or 0)

    def with_settings(self, settings: Mapping[str, Any], *, where: str = "") -> "Recipe":
        """The recipe with other settings; a budget takes the place of the one before.

        Args:
            settings: by dotted names, for instance ``{"training.minutes": 20}``, or nested.
            where: where they come from, for error messages.

        Raises:
            ConfigError: if a setting does not exist or has a wrong value.
        """
        tree = nested(settings)
        training = tree.get("training")
        if isinstance(training, dict) and set(training) & set(BUDGETS):
            tree["training"] = {**dict.fromkeys(BUDGETS), **training}
        changed = merge(self, tree, where=where)
        for setting, reason in _without_effect(changed, _other(tree, self)):
            logger.warning("%s%s has no effect: %s", where and f"{where}: ", setting, reason)
        return changed

    def started_from(self, shape: ModelConfig, name: str, max_length: int) -> "Recipe":
        """The recipe for going on from a model: its shape, with what this recipe's objective needs.

        That is its dropouts, its heads beside the language model's, and how a decoder reads. All
        other settings of model and tokenizer are the model's.

        Args:
            shape: of the model.
            name: of the model, for the record.
            max_length: the longest sequence that it takes.

        Raises:
            ConfigError: if the recipe trains another kind of model, or word vectors.
        """
        if isinstance(self.objective, WordContext):
            raise ConfigError(
                f"the recipe {self.name} begins with random vectors and cannot go on from {name}; "
                "leave the start out"
            )
        if type(shape) is not type(self.model):
            raise ConfigError(
                f"the recipe {self.name} trains {type(self.model).__name__}, and {name} is "
                f"{type(shape).__name__}; choose the recipe that it was trained with"
            )
        own = {f.name: getattr(self.model, f.name) for f in fields(shape) if is_own(f.name)}
        return replace(self, model=replace(shape, **own), start=name, start_length=max_length)

    def with_vocabulary(self, vocabulary: Vocabulary) -> "Recipe":
        """The recipe for the vocabulary that a tokenizer turned out to have.

        A model to go on from keeps what rows its table has beyond it.

        Raises:
            ConfigError: if some words are not to be predicted, and there is no token for them.
        """
        model, size = self.model, vocabulary.size
        if self.start is not None:
            return replace(self, tokenizer=replace(self.tokenizer, vocab_size=size))
        if isinstance(model, ElmoConfig):
            predicted, unknown = min(size, model.output_size), vocabulary.unknown
            if unknown == ABSENT and predicted < size:
                raise ConfigError(
                    "the tokenizer has no token for unknown words, which stands for those beyond "
                    f"the softmax; set model.output_size to {size}, all tokens, or take another one"
                )
            known = model.unknown if unknown == ABSENT else unknown
            model = replace(model, output_size=predicted, vocab_size=size, unknown=known)
        return replace(
            self,
            model=replace(model, vocab_size=size),
            tokenizer=replace(self.tokenizer, vocab_size=size),
        )


_OF_OBJECTIVES = ("pair_head", "boundary_places", "bidirectional", "whole_prompts")


def is_own(name: str) -> bool:
    """Whether a recipe keeps this setting of its model where it goes on from another model."""
    return name == "dropout" or name.endswith("_dropout") or name in _OF_OBJECTIVES


def _check_objective(recipe: Recipe) -> None:
    """Whether the model can learn the objective, has its heads and gets sequences it can use."""
    model, objective = recipe.model, recipe.objective
    if type(model).__name__ not in objective.models:
        raise ConfigError(
            f"{type(objective).__name__} trains {' or '.join(objective.models)}, and this model is "
            f"of {type(model).__name__}; choose a recipe with such a model, or another objective"
        )
    _check_prefix(objective, model)
    if isinstance(objective, Hybrid) and not getattr(model, "bidirectional", False):
        raise ConfigError(
            "Hybrid trains a model that reads in both directions; set model.bidirectional to true, "
            "or start from the recipe hybrid"
        )
    if isinstance(objective, CausalLM) and isinstance(model, GPTConfig) and model.bidirectional:
        raise ConfigError(
            "CausalLM trains a model that reads from left to right; set model.bidirectional to "
            "false, or start from the recipe hybrid"
        )
    encoder = isinstance(model, BertConfig)
    if isinstance(objective, SpanBoundary) and not (encoder and model.boundary_places):
        raise ConfigError(
            "SpanBoundary trains the span boundary head, which this model does not have; set "
            "model.boundary_places to 15, or start from the recipe spanbert"
        )
    _check_spans(recipe)
    _check_recurrent(recipe)
    if not isinstance(objective, SentencePairs):
        return
    if not (encoder and model.pair_head):
        raise ConfigError(
            "SentencePairs trains the pair head, which this model does not have; set "
            "model.pair_head to true, or start from the recipe bert-nsp"
        )
    if model.num_segments == 1:
        raise ConfigError("SentencePairs needs model.num_segments 2 (or 0, for none at all), not 1")
    if recipe.data.packing == "full":
        raise ConfigError(
            "SentencePairs needs sequences of one document each; set data.packing to documents"
        )


def _check_prefix(objective: Objective, model: ModelConfig) -> None:
    prefix, own = isinstance(objective, PrefixLM), isinstance(model, EncoderDecoderConfig)
    if isinstance(objective, PrefixLM) and objective.encoder != own:
        raise ConfigError(
            f"objective.encoder is {objective.encoder}; set it to {own} for this model, which has "
            f"{'an' if own else 'no'} encoder of its own"
        )
    if isinstance(model, GPTConfig) and model.whole_prompts != prefix:
        raise ConfigError(
            f"model.whole_prompts is {model.whole_prompts}; set it to {prefix}: a decoder reads "
            "prompts in both directions if it is trained with PrefixLM, and only then"
        )


def _check_recurrent(recipe: Recipe) -> None:
    """Streams and their settings are for models that carry a state."""
    model, objective, streams = recipe.model, recipe.objective, recipe.data.packing == "streams"
    recurrent = isinstance(model, ElmoConfig | AWDLSTMConfig)
    if streams and not recurrent:
        raise ConfigError(
            "data.packing streams is for recurrent models, which carry their state from step to "
            "step; use documents or full"
        )
    if streams and recipe.training.accumulation > 1:
        raise ConfigError("data.packing streams needs training.accumulation to be 1")
    if recipe.data.vary and not streams:
        raise ConfigError("data.vary is for streams; set data.packing to streams, or leave it out")
    if recipe.data.restart and not (streams and 0 < recipe.data.restart <= 1):
        raise ConfigError(
            f"data.restart is {recipe.data.restart}; expected a share from 0 to 1, of the steps of "
            "streams (data.packing)"
        )
    if not isinstance(objective, CausalLM):
        return
    if (objective.ar or objective.tar) and not isinstance(model, AWDLSTMConfig):
        raise ConfigError("objective.ar and objective.tar regularise AWDLSTMConfig; leave them out")
    if objective.backward != (isinstance(model, AWDLSTMConfig) and model.backward):
        raise ConfigError(
            f"objective.backward is {objective.backward}; model.backward must be the same (only an "
            "AWD-LSTM can be trained from right to left)"
        )


def _masks_spans(objective: Objective) -> bool:
    """Whether it masks the spans that are marked in the text."""
    masked = getattr(objective, "masked", objective)
    entities = isinstance(masked, MaskedLM) and masked.units == "entity"
    return entities or (isinstance(objective, SpanCorruption) and objective.noise == "salient")


def _check_spans(recipe: Recipe) -> None:
    if _masks_spans(recipe.objective) and recipe.data.spans == "none":
        raise ConfigError(
            "the objective masks marked spans; set data.spans to names, salient or a file that "
            "marks them"
        )
    if recipe.data.spans != "none" and recipe.data.packing == "full":
        raise ConfigError("data.spans needs data.packing to be documents")


def _idle_in_training(chosen: Recipe, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if isinstance(chosen.objective, WordContext):
        for name in settings.keys() - _OF_WORD_VECTORS:
            yield f"training.{name}", "word vectors have a loop and a rate of their own"
        return
    shape = chosen.training.schedule.shape
    for name in settings.get("schedule", ()):
        if shape not in _OF_SHAPES.get(name, (shape,)):
            yield f"training.schedule.{name}", f"the shape is {shape}"


def _other(tree: Mapping[str, Any], before: Any) -> dict[str, Any]:
    """Those settings of a tree that are not as they were before."""
    found = {}
    for name, value in tree.items():
        own = getattr(before, name, None)
        if isinstance(value, Mapping):
            found[name] = _other(value, own)
        elif value != own:
            found[name] = value
    return found


def _without_effect(
    chosen: Recipe, settings: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Those of the settings that the others make idle, each with the reason."""
    for name, reason in _idle_in_model(chosen).items():
        if reason and name in settings.get("model", ()):
            yield f"model.{name}", reason
    objective, own = chosen.objective, settings.get("objective", {})
    if "packing" in settings.get("data", ()) and isinstance(objective, SequenceToSequence):
        yield "data.packing", "sequences are the pairs"
    if "spans" in settings.get("data", ()) and not _masks_spans(objective):
        yield "data.spans", "only objective.units entity and objective.noise salient mask them"
    yield from _idle_in_training(chosen, settings.get("training", {}))
    if "mean_length" in own and isinstance(objective, SpanCorruption) and objective.noise == "iid":
        yield "objective.mean_length", "independent noise has spans of whatever length comes"
    final = "final_rate" in own
    if final and isinstance(objective, MaskedLM) and objective.final_rate == objective.rate:
        yield "objective.final_rate", "it is the rate at the start"


def _idle_in_model(chosen: Recipe) -> dict[str, str]:
    """Settings of the model that others may make idle, each with the reason, or empty."""
    model, objective = chosen.model, chosen.objective
    rotary = model.positions == "rotary"
    idle = {
        "vocab_size": "it is that of the tokenizer; set tokenizer.vocab_size (--vocab)",
        "rotary_base": "" if rotary else f"positions are {model.positions}",
    }
    if isinstance(model, BertConfig):
        windows = model.local_window > 0
        idle |= {
            "position_offset": "rotary positions have no table" if rotary else "",
            "rotary_base_global": idle["rotary_base"],
            "global_every": "" if windows else "without local_window all layers are global",
        }
        if rotary and not windows:
            idle["rotary_base_global"] = "without local_window every layer has rotary_base"
        if model.pair_head and not isinstance(objective, SentencePairs):
            idle["pair_head"] = "only the objective SentencePairs trains it"
        if model.boundary_places and not isinstance(objective, SpanBoundary):
            idle["boundary_places"] = "only the objective SpanBoundary trains them"
    if isinstance(model, EncoderDecoderConfig) and model.positions != "relative":
        idle |= dict.fromkeys(
            ("distance_buckets", "max_distance"), f"positions are {model.positions}"
        )
    if isinstance(model, Seq2SeqConfig) and model.bidirectional:
        idle["reverse"] = "additive attention reads both ways"
    if isinstance(model, StaticConfig) and not model.buckets:
        idle |= dict.fromkeys(("min_n", "max_n"), "without buckets there are no n-grams")
    return idle
