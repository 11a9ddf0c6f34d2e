"""What training is given beside its text: a recipe, a model to go on from, a tokenizer, vectors."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from firth.api.language_model import LanguageModel
from firth.api.neighbours import weights_hash
from firth.api.word_vectors import vocabulary_vectors
from firth.errors import ConfigError, DataError
from firth.models import BertConfig, ElmoConfig, StaticConfig
from firth.objectives import Hybrid, WordContext
from firth.protocols import ABSENT
from firth.recipes import Recipe
from firth.text.token_vectors import centred_directions, token_vectors
from firth.text.tokenizers import Tokenizer
from firth.training import BUDGETS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Given:
    """What a run begins with beside its text; see `firth.pretrain`."""

    start: LanguageModel | None = None
    tokenizer: Tokenizer | None = None
    vectors: LanguageModel | None = None

    def hashes(self) -> dict[str, str | None]:
        """Of each as it is now. Under which name it lies does not matter."""
        start, tokenizer, vectors = self.start, self.tokenizer, self.vectors
        words = vectors and f"{weights_hash(vectors.model)} {vectors.tokenizer.content_hash}"
        return {
            "start": start and weights_hash(start.model),
            "tokenizer": tokenizer and tokenizer.content_hash,
            "vectors": words,
        }

    def put_into(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        """Gives a new model the weights, or the tokens' vectors, that it is to begin with."""
        if self.start is not None:
            copy_weights(self.start.model, model)
        if self.vectors is not None:
            _begin_with_vectors(model, tokenizer, self.vectors)


def check_given(recipe: Recipe, start: object, tokenizer: object) -> None:
    """Refuses, before any text is read, what is no recipe or has no budget, what is no model to go
    on from, and what is no tokenizer or does not suit the recipe.

    Raises:
        ConfigError: says what to give instead.
    """
    if not isinstance(recipe, Recipe):
        raise ConfigError(
            f"the recipe is {recipe!r}, expected a firth.Recipe, such as firth.recipe('bert')"
        )
    if all(getattr(recipe.training, budget) is None for budget in BUDGETS):
        raise ConfigError(f"there is no budget; give one of {', '.join(BUDGETS)}")
    if start is not None and not isinstance(start, LanguageModel):
        raise ConfigError(
            f"start is {start!r} ({type(start).__name__}), expected a language model: "
            "firth.load(DIRECTORY) of a run; of an adapted model give the run that it was made from"
        )
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        raise ConfigError(
            f"tokenizer is {tokenizer!r} ({type(tokenizer).__name__}), expected a firth.Tokenizer, "
            "such as firth.Tokenizer.load(DIRECTORY)"
        )
    if tokenizer is not None:
        _check_tokenizer(recipe, tokenizer)


def tokenizer_beside(
    vectors: LanguageModel,
    recipe: Recipe,
    start: LanguageModel | None,
    tokenizer: Tokenizer | None,
) -> Tokenizer | None:
    """The tokenizer of a run that begins with vectors: their own, if they are of pieces of words.

    Refuses, before any text is read, vectors that are none, or that have no place to go.

    Raises:
        ConfigError: if the model has no vectors of its tokens, or begins with those of another, or
            the vectors are of pieces that the tokenizer given does not make.
        UnsupportedError: if they depend on the context.
    """
    vocabulary_vectors(vectors)
    if start is not None:
        raise ConfigError(
            "a model that goes on from another one has vectors of its tokens already; give the "
            "start or the vectors, not both"
        )
    if isinstance(recipe.model, ElmoConfig) or isinstance(recipe.objective, WordContext):
        what = "spells words" if isinstance(recipe.model, ElmoConfig) else "learns word vectors"
        raise ConfigError(
            f"the recipe {recipe.name} {what} and cannot begin with vectors; leave them out"
        )
    own = vectors.tokenizer
    if own.whole_words:
        return tokenizer
    if tokenizer is not None and tokenizer.content_hash != own.content_hash:
        raise ConfigError(
            f"the vectors are of pieces of words ({own.vocabulary.size} tokens), and the tokenizer "
            f"given is not theirs ({tokenizer.vocabulary.size} tokens); leave it out"
        )
    _check_tokenizer(recipe, own)
    logger.info("the tokenizer is that of the vectors, of %s tokens", f"{own.vocabulary.size:,}")
    return own


def _check_tokenizer(recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Refuses one without an opening where blanks are filled, and one of pieces where words are
    spelled.
    """
    if isinstance(recipe.model, BertConfig) or isinstance(recipe.objective, Hybrid):
        first = tokenizer.vocabulary.first
        if first != ABSENT and tokenizer.encode("a").ids[0] != first:
            raise ConfigError(
                f"the tokenizer that was given does not put {tokenizer.token(first)} before a "
                "text, as training does and the model will expect; give its tokenizer.json a "
                "post_processor (tokenizers.processors.TemplateProcessing) that does"
            )
    spelled = isinstance(recipe.model, StaticConfig) and recipe.model.buckets > 0
    if (spelled or isinstance(recipe.model, ElmoConfig)) and not tokenizer.whole_words:
        raise ConfigError(
            f"the recipe {recipe.name} spells whole words, and the tokenizer that was given cuts "
            "them into pieces; leave it out, or train one with kind='word' or 'whitespace'"
        )


def own_tokenizer(start: LanguageModel, name: str, given: Tokenizer | None = None) -> Tokenizer:
    """The tokenizer of a model to go on from.

    Raises:
        ConfigError: if it has no tokens of text, or more than the model, or another one is given.
    """
    tokenizer, rows = start.tokenizer, start.model.config.vocab_size
    if given is not None and given.content_hash != tokenizer.content_hash:
        raise ConfigError(
            f"the tokenizer given ({given.vocabulary.size} tokens) is not that of {name} "
            f"({tokenizer.vocabulary.size} tokens), whose weights are of its own tokens; leave it "
            "out, or leave the start out"
        )
    size, special = tokenizer.vocabulary.size, len(tokenizer.vocabulary.special)
    if size <= special or size > rows:
        raise ConfigError(
            f"training cannot go on from {name}: its tokenizer has {size} tokens, {special} of "
            f"them special, and the model {rows}; a published ELMo has no words, only characters"
        )
    return tokenizer


_HEADS = ("pooler.", "pair_head.", "boundary_head.")


def copy_weights(start: nn.Module, model: nn.Module) -> None:
    """All but those of heads that one of both has not: the model's own begin at random, the others
    are left behind.
    """
    state, kept = start.state_dict(), model.state_dict()
    shared = {n: w for n, w in state.items() if n in kept or not n.startswith(_HEADS)}
    fresh = {n: w for n, w in kept.items() if n not in state and n.startswith(_HEADS)}
    model.load_state_dict({**shared, **fresh})
    for names, what in (
        (fresh, "not in the model to go on from, begins at random"),
        (state.keys() - shared.keys(), "left behind, since the objective has no use for it"),
    ):
        if heads := sorted({name.split(".")[0] for name in names}):
            logger.info("%s: %s", ", ".join(heads), what)


def _rows_of_tokens(tokenizer: Tokenizer, given: LanguageModel) -> tuple[np.ndarray, np.ndarray]:
    """Ids of tokens, and the vectors that are theirs, or are of words with them."""
    if not given.tokenizer.whole_words:
        weight = given.model.embeddings.tokens.weight.detach().cpu().numpy()  # type: ignore[union-attr]
        ids = np.flatnonzero(weight.any(1))
        return ids, weight[ids]
    words, vectors = vocabulary_vectors(given)
    lowercase = given.tokenizer.normalize("A") == "a"
    ids, rows = token_vectors(tokenizer, words, vectors, lowercase=lowercase)
    if not len(ids):
        raise DataError(
            f"none of the {len(words):,} words with vectors is in the vocabulary of the model, or "
            "has a piece there; are they of the same language?"
        )
    return ids, rows


@torch.no_grad()
def _begin_with_vectors(model: Any, tokenizer: Tokenizer, given: LanguageModel) -> None:
    """Puts word vectors in place of the random rows of the tokens that they say something of.

    Each is made as long as a random row is on average, so that a paper's initialisation keeps its
    scale. Beside vectors that are narrower than the model the random numbers stay.
    """
    ids, rows = _rows_of_tokens(tokenizer, given)
    embeddings = model.embeddings
    weight = getattr(embeddings, "tokens", embeddings).weight  # (V, D)
    directions = torch.from_numpy(centred_directions(rows, weight.shape[1])).to(weight)
    at, size = torch.from_numpy(ids).to(weight.device), directions.shape[1]
    weight[at, :size] = directions * weight[at, :size].norm(dim=1).mean()
    logger.info(
        "%s of %s tokens begin with vectors of %s",
        f"{len(ids):,}",
        f"{tokenizer.vocabulary.size:,}",
        given.path or "words in memory",
    )
