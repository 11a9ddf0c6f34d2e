"""What `LanguageModel.index_words` and `LanguageModel.neighbours` do."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from firth.api.word_vectors import vocabulary_vectors
from firth.config import from_dict
from firth.errors import ConfigError
from firth.inference.embedding import Layers, chosen_layers, token_states, word_vectors
from firth.inference.index_building import Cut, Embed, WordFilter, Words, build_index
from firth.inference.isotropy import Remove
from firth.inference.neighbours import (
    Among,
    Occurrence,
    nearest_occurrences,
    static_neighbours,
)
from firth.inference.word_index import WordIndex, check_same
from firth.inference.word_similarity import Nearest, nearest_words
from firth.protocols import Text
from firth.text.corpus import Corpus
from firth.text.words import folded

if TYPE_CHECKING:
    from firth.api.language_model import LanguageModel

_MARK = re.compile(r"\[([^\[\]]*)\]")
_HOW_TO = "put square brackets round one word, as in 'open a [bank] account'"


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """What is near a word in its context."""

    word: str
    text: str
    """Without the mark."""
    occurrences: list[Occurrence]
    """The nearest ones in the corpus."""
    static: Nearest
    """Words by vectors that know no context; empty where the word has none."""


def index_words(
    lm: LanguageModel,
    corpus: Corpus,
    directory: str | Path,
    *,
    layers: Layers = -1,
    split: bool = False,
    **words: Any,
) -> WordIndex:
    """Builds an index of the words of a corpus, or resumes a build, or opens what is there.

    The corpus is read sentence by sentence (each is a text of its own to the model) in bounded
    memory.

    Args:
        lm: the model.
        corpus: the text.
        directory: the folder of the index; an occurrence takes 2 D + 30 bytes.
        layers: one layer (-1 is the last, 0 the embedding output), or several or "all", of which
            the mean is taken.
        split: the text is tokenised: a line is a sentence, white space separates words.
        words: fields of `WordFilter`: words=("bank",) for given words alone, min_count,
            skip_frequent, punctuation.

    Raises:
        DataError: if the folder holds an index of another model, corpus or setting, or the corpus
            none of the words.
        ResourceError: if the disk is full.
    """
    if not isinstance(corpus, Corpus):
        raise ConfigError(
            f"the text is a {type(corpus).__name__}, expected a firth.Corpus (Corpus.from_files, "
            "or Corpus.from_texts for texts in memory)"
        )
    word_filter = from_dict(WordFilter, words)
    wanted = chosen_layers(layers, len(lm.model.layers))
    settings = asdict(word_filter)
    identity = {
        **_made_by(lm),
        "corpus": corpus.fingerprint(),
        "layers": list(wanted or (len(lm.model.layers),)),
        "split": split,
        "filter": {**settings, "words": sorted(map(folded, word_filter.words))},
    }

    embed, cut = _readers(lm, wanted, split=split)
    return build_index(
        directory,
        corpus,
        embed,
        cut,
        dimensions=lm.embed([""], layers=layers).shape[-1],
        identity=identity,
        word_filter=word_filter,
        lines=split,
    )


def _readers(
    lm: LanguageModel, layers: tuple[int, ...] | None, *, split: bool
) -> tuple[Embed, Cut]:
    """What gives the words of sentences with their vectors, and what gives the words alone."""

    def texts(sentences: Sequence[str]) -> list[Text]:
        return [one.split() for one in sentences] if split else list(sentences)

    def embed(sentences: Sequence[str]) -> Iterable[Words]:
        encodings = lm.encode(texts(sentences))
        states = token_states(lm.engine, encodings, layers=layers)
        for given, sentence, encoding, state in zip(
            texts(sentences), sentences, encodings, states, strict=True
        ):
            found = word_vectors(encoding, state, None if isinstance(given, str) else given)
            offsets = _places(sentence) if split else found.offsets
            yield Words(found.units, offsets, found.vectors.mean(axis=1))

    def cut(sentences: Sequence[str]) -> Iterable[Sequence[str]]:
        for given, encoding in zip(texts(sentences), lm.encode(texts(sentences)), strict=True):
            nothing = np.zeros((len(encoding.ids), 1, 1), np.float32)
            yield word_vectors(encoding, nothing, None if isinstance(given, str) else given).units

    return embed, cut


def _places(sentence: str) -> np.ndarray:
    """(n, 2) start and end of what white space separates."""
    spans = [match.span() for match in re.finditer(r"\S+", sentence)]
    return np.array(spans, np.int64).reshape(-1, 2)


def find_neighbours(
    lm: LanguageModel,
    text: Text,
    index: WordIndex | str | Path,
    *,
    top_k: int = 10,
    among: Among = "all",
    directions: Remove = "auto",
    one_a_sentence: bool = True,
    static: LanguageModel | None = None,
) -> Neighbours:
    """The neighbours of the word marked in a text.

    Args:
        lm: the model that the index was built with.
        text: with the word in square brackets; or a list of words, of which one has them.
        index: from `index_words`, or its folder.
        top_k: how many.
        among: "same" for occurrences of the same word alone, "other" for those of others.
        directions: principal directions that the correction for anisotropy removes besides the
            mean; "auto" is one in a hundred dimensions, "off" compares plain vectors.
        one_a_sentence: only the nearest word of each sentence.
        static: the model of static vectors whose neighbours are given beside; by default each
            word's mean over the index, if it occurs there five times or more and the index is not
            of given words alone.

    Raises:
        ConfigError: if not exactly one whole word is marked, or a setting cannot be used.
        DataError: if the index is of another model.
    """
    index = index if isinstance(index, WordIndex) else WordIndex.open(index)
    check_same(index.path, index.manifest, _made_by(lm))
    if index.manifest["split"] and isinstance(text, str):
        text = text.split()
    plain, place = marked_word(text)
    if among == "same":
        check_one_word(lm, text)
    word, vector = _vector(lm, plain, place, tuple(index.manifest["layers"]))
    how: dict[str, Any] = {"top_k": top_k, "directions": directions}
    occurrences = nearest_occurrences(
        index, vector, word=word, among=among, one_a_sentence=one_a_sentence, **how
    )
    joined = plain if isinstance(plain, str) else " ".join(plain)
    if static is None:
        words = static_neighbours(index, word, **how)
    else:
        words = _neighbours_in(static, word, top_k)
    return Neighbours(word=word, text=joined, occurrences=occurrences, static=words)


def _neighbours_in(static: LanguageModel, word: str, top_k: int) -> Nearest:
    words, vectors = vocabulary_vectors(static)
    vector = static.embed([[word]], unit="word")[0].vectors[0]
    own = static.tokenizer.normalize(word).strip()
    return nearest_words(words, vectors, vector, top_k, without=(own,)) if vector.any() else []


def marked_word(text: Text) -> tuple[Text, tuple[int, int]]:
    """A text without its mark, and where the marked word begins and ends, in characters.

    Of a list of words, one has the brackets: ["open", "a", "[bank]", "account"]. Its characters are
    those of the words joined by single spaces.

    Raises:
        ConfigError: if not exactly one word is marked.
    """
    joined = text if isinstance(text, str) else " ".join(text)
    marks = list(_MARK.finditer(joined))
    if len(marks) != 1:
        found = f"{len(marks)} words are marked" if marks else "no word is marked"
        raise ConfigError(f"{found} in {joined!r}; {_HOW_TO}, and leave other brackets out")
    (mark,) = marks
    if not mark[1].strip():
        raise ConfigError(f"the mark is empty in {joined!r}; {_HOW_TO}")
    place = (mark.start(), mark.end() - 2)
    if isinstance(text, str):
        return joined[: mark.start()] + mark[1] + joined[mark.end() :], place
    words, offset = [], 0
    for word in text:
        brackets = {mark.start() - offset, mark.end() - 1 - offset}
        words.append("".join(c for i, c in enumerate(word) if i not in brackets))
        offset += len(word) + 1
    return words, place


def check_one_word(lm: LanguageModel, text: Text) -> None:
    """Refuses a mark round what is several words to the tokenizer: they are found one by one.

    Raises:
        ConfigError: for such a mark.
    """
    plain, (begin, end) = marked_word(text)
    (encoding,) = lm.encode([plain])
    nothing = np.zeros((len(encoding.ids), 1, 1), np.float32)
    found = word_vectors(encoding, nothing, None if isinstance(plain, str) else plain)
    inside = [
        unit
        for unit, (low, high) in zip(found.units, found.offsets, strict=True)
        if low < end and high > begin
    ]
    if len(inside) > 1:
        raise ConfigError(
            f"the marked word is {len(inside)} words to this model's tokenizer: "
            f"{' '.join(inside)}, and occurrences are of one; look at all words, or split the text "
            "at white space (--split)"
        )


def _vector(
    lm: LanguageModel, text: Text, place: tuple[int, int], layers: tuple[int, ...]
) -> tuple[str, np.ndarray]:
    """The marked word and its (D) vector; where it is several words to the model, their mean.

    Raises:
        ConfigError: if the mark cuts a word, or holds nothing that the tokenizer keeps.
    """
    begin, end = place
    words = None if isinstance(text, str) else text
    (encoding,) = lm.encode([text])
    (states,) = token_states(lm.engine, [encoding], layers=layers)
    found = word_vectors(encoding, states, words)
    low, high = found.offsets.T if len(found.units) else (np.empty(0), np.empty(0))
    touched = (low < end) & (high > begin)
    cut = touched & ((low < begin) | (high > end))
    marked = encoding.text[begin:end].strip()
    if cut.any():
        whole = found.units[int(np.flatnonzero(cut)[0])]
        raise ConfigError(f"the mark holds {marked!r}, a part of the word {whole!r}; mark it whole")
    vectors = found.vectors[touched].mean(axis=1)
    if not vectors.any():
        first, last = encoding.offsets[encoding.words >= 0].T
        token = ((first < end) & (last > begin)).any()
        why = "the model has no vector for" if token else "the tokenizer keeps nothing of"
        raise ConfigError(f"{why} the marked word {marked!r}; mark another one")
    return marked, vectors.mean(axis=0)


def _made_by(lm: LanguageModel) -> dict[str, str]:
    return {"model": lm.weights_hash, "tokenizer": lm.tokenizer.content_hash}


def weights_hash(model: nn.Module) -> str:
    """A hash of all numbers of a model, wherever they lie."""
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        total.update(flat.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
