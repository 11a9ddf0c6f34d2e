"""Recipes of static word vectors."""

from typing import Any

from firth.models import StaticConfig
from firth.objectives import GloVe, SkipGram, WordContext
from firth.recipes.settings import Recipe
from firth.recipes.shapes import shape_of
from firth.recipes.text_settings import DataSettings, TokenizerSettings
from firth.training import Training


def word2vec(size: str = "mini", vocab_size: int = 50_000) -> Recipe:
    """Skip-gram with negative sampling (Mikolov et al. 2013, "Distributed Representations").

    Section 2.2 and 2.3, with the settings of the published program: windows of 1 to 5 words, 5
    negatives, subsampling at 1e-3, learning rate 0.025 falling to nothing, 5 epochs. CBOW is
    `--objective.type CBOW`, whose rate is 0.05.

    Departures: those of `SkipGram`; vectors as wide as BERT's of this size (the papers have 300,
    the program 100); lower case; the `vocab_size` most frequent words of those seen twice (the
    program has all seen 5 times); a window ends with its document, and
    the words in it are those that are not cut at white space and punctuation.
    """
    return _recipe("word2vec", size, vocab_size, SkipGram())


def fasttext(size: str = "mini", vocab_size: int = 50_000) -> Recipe:
    """FastText (Bojanowski et al. 2017), section 3 and 4.3: skip-gram over n-grams of characters.

    N-grams of 3 to 6 characters, negatives by the square root of the frequency, subsampling at
    1e-4, learning rate 0.05, 5 negatives, 5 epochs. Unseen words have vectors.

    Departures: those of `word2vec`; 200,000 buckets of n-grams instead of 2,000,000, which small
    texts do not fill (`--model.buckets 2000000`).
    """
    objective = SkipGram(subsample=1e-4, power=0.5, lr=0.05)
    return _recipe("fasttext", size, vocab_size, objective, buckets=200_000)


def glove(size: str = "mini", vocab_size: int = 50_000) -> Recipe:
    """GloVe (Pennington et al. 2014), section 4.2: a fit to the logarithms of co-occurrence counts.

    Ten words to each side, x_max 100, alpha 3/4, AdaGrad at 0.05, 50 passes (the paper's number
    below 300 dimensions).

    Departures: those of `GloVe`; of `word2vec`, as to width, case and vocabulary.
    """
    return _recipe("glove", size, vocab_size, GloVe(), epochs=50.0, outputs=False)


def _recipe(
    name: str,
    size: str,
    vocab_size: int,
    objective: WordContext,
    *,
    epochs: float = 5.0,
    **shape: Any,
) -> Recipe:
    width = shape_of(size)["hidden_size"]
    return Recipe(
        name=name,
        model=StaticConfig(vocab_size=vocab_size, hidden_size=width, **shape),
        tokenizer=TokenizerSettings(kind="word", vocab_size=vocab_size, lowercase=True),
        objective=objective,
        data=DataSettings(max_length=1000),
        training=Training(epochs=epochs, batch_tokens=10_000),
    )
