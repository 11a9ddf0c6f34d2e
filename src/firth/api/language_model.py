"""`LanguageModel`: one object for everything a pre-trained model can do."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from firth.api.generating import Generated, decoding, generate_texts, stream_text
from firth.api.neighbours import Neighbours, find_neighbours, index_words, weights_hash
from firth.api.word_vectors import save_word_vectors, word_similarity
from firth.device import Precision
from firth.errors import ConfigError, UnsupportedError
from firth.inference.embedding import (
    Layers,
    Vectors,
    check_unit,
    chosen_layers,
    embed_sentences,
    token_states,
    token_vectors,
    word_vectors,
)
from firth.inference.forward import Engine, up_to_date
from firth.inference.minimal_pairs import (
    baseline_differences,
    encode_pairs,
    model_differences,
    training_tokens,
)
from firth.inference.scoring import Filled, Score, fill, score_causal, score_masked
from firth.inference.stateful import stateful_states
from firth.inference.word_index import WordIndex
from firth.interop.files import write_model
from firth.interop.huggingface import save_model
from firth.models import (
    AWDLSTM,
    GPT,
    Bert,
    Elmo,
    LanguageModelNetwork,
    SourceToTarget,
    Static,
    described,
)
from firth.models.mix import Pooling
from firth.protocols import Batch, Encoding, Report, Text
from firth.tasks.suites import Suite, read_suite, report
from firth.text.batches import collate
from firth.text.corpus import Corpus
from firth.text.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class TextArray:
    """One text's tokens with an array that has a row (or, for hidden states, a column) for each."""

    tokens: list[str]
    """Special tokens included."""
    offsets: np.ndarray
    """(tokens, 2) in characters; (0, 0) for special tokens."""
    values: np.ndarray
    """(tokens, V) logits or (L+1, tokens, D) hidden states; float32."""


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A pre-trained model with its tokenizer. Nothing changes it: `adapt` works on copies."""

    model: LanguageModelNetwork
    tokenizer: Tokenizer
    path: Path | None = None
    precision: Precision = "auto"
    record: dict[str, Any] = field(default_factory=dict)
    """What the run directory says about how it was made."""
    lm_head: bool = True
    """Whether the head that predicts tokens was trained; a bare encoder comes without one."""

    def __post_init__(self) -> None:
        show_words(self.model, self.tokenizer)

    @property
    def max_length(self) -> int:
        """Longest sequence, in tokens: learned positions that training never saw do not count."""
        return self.record.get("max_length", self.model.config.max_length)

    @property
    def causal(self) -> bool:
        """Whether the model predicts each token from those before it, and so continues texts."""
        return isinstance(self.model, GPT | Elmo | AWDLSTM)

    @property
    def fills(self) -> bool:
        """Whether the model fills blanks: a masked one does, a hybrid, and a biLM."""
        model = self.model
        if isinstance(model, GPT):
            return model.config.bidirectional
        return isinstance(model, Bert | Elmo)

    @property
    def engine(self) -> Engine:
        """The model, ready to run, with the weights that it has now."""
        make = partial(Engine.of, self.model, self.precision, self.max_length)
        return up_to_date(self, "_engine", self.model, make)

    @property
    def writer(self) -> Engine:
        """The model, ready to write token by token.

        On the CPU in float32: for a few rows its products are faster than those of bfloat16.
        """
        on_cpu = next(self.model.parameters()).device.type == "cpu"
        return Engine.of(self.model, "float32", self.max_length) if on_cpu else self.engine

    @property
    def weights_hash(self) -> str:
        """A hash of all numbers of the model."""
        return up_to_date(self, "_hash", self.model, partial(weights_hash, self.model))

    def __repr__(self) -> str:
        return f"LanguageModel({described(self.model)}, {self.tokenizer!r}, {self.path})"

    def batch(self, texts: Sequence[Text]) -> Batch:
        """Texts laid end to end, as the model takes them."""
        return collate([encoding.ids for encoding in self.encode(texts)])

    def logits(self, texts: Sequence[Text]) -> list[TextArray]:
        """Scores over the vocabulary at every token: one (tokens, V) array a text.

        A masked model's are of the token itself, a causal one's of the next token.
        """
        self._require_head("logits")
        if isinstance(self.model, SourceToTarget):
            raise UnsupportedError(
                "logits of an encoder-decoder depend on what its decoder has written; use generate "
                "or score, or call the model with a batch that has a source"
            )
        encodings = self.encode(texts, whole=True)
        states = token_states(self.engine, encodings, causal=self.causal)
        device = self.engine.device
        with torch.inference_mode():
            return [
                _array(e, self.model.logits(torch.from_numpy(s[:, 0]).to(device)).cpu().numpy())
                for e, s in zip(encodings, states, strict=True)
            ]

    def hidden_states(self, texts: Sequence[Text], *, stateful: bool = False) -> list[TextArray]:
        """Every layer's states: one (L+1, tokens, D) array a text, the embedding output first.

        Args:
            texts: strings, or lists of the user's own words.
            stateful: have a recurrent model read the texts as one, each in the state in which it
                left the one before. By default a text's states never depend on other texts.
        """
        encodings = self.encode(texts, whole=True)
        if stateful:
            found = stateful_states(self.engine, [e.ids for e in encodings])
            return [_array(e, s) for e, s in zip(encodings, found, strict=True)]
        layers = chosen_layers("all", len(self.model.layers))
        states = token_states(self.engine, encodings, layers=layers)
        return [_array(e, s.swapaxes(0, 1)) for e, s in zip(encodings, states, strict=True)]

    def embed(
        self,
        texts: Sequence[Text],
        *,
        unit: Literal["sentence", "word", "token"] = "sentence",
        layers: Layers = -1,
        pooling: Pooling = "mean",
    ) -> Any:
        """Vectors for texts, their words or their tokens.

        Args:
            texts: strings, or lists of the user's own words. Texts longer than the model's window
                are embedded in overlapping windows.
            unit: "sentence" for one vector a text; "word" for one a word (the user's words where a
                text is a list, else the pre-tokenizer's); "token" for one a token.
            layers: one layer (-1 is the last, 0 the embedding output), several, or "all".
            pooling: how a sentence's tokens become one vector (a word's are averaged).

        Returns:
            For sentences an array (texts, D), or (texts, layers, D) for several layers; else one
            `Vectors` a text.
        """
        encodings = self.encode(texts)
        wanted = chosen_layers(layers, len(self.model.layers))
        one = isinstance(layers, Integral)
        if unit == "sentence":
            if not encodings:
                several = () if one else (len(wanted or (0,)),)
                return np.empty((0, *several, self.model.config.hidden_size), np.float32)
            vectors = embed_sentences(self.engine, encodings, layers=wanted, pooling=pooling)
            return vectors[:, 0] if one else vectors
        check_unit(unit, pooling)
        states = token_states(self.engine, encodings, layers=wanted)
        found = []
        for text, encoding, state in zip(texts, encodings, states, strict=True):
            words = None if isinstance(text, str) else text
            vectors = (
                word_vectors(encoding, state, words)
                if unit == "word"
                else token_vectors(encoding, state)
            )
            if one:
                vectors = Vectors(**{**vars(vectors), "vectors": vectors.vectors[:, 0]})
            found.append(vectors)
        return found

    def index_words(self, corpus: Corpus, directory: str | Path, **how: Any) -> WordIndex:
        """Builds an index on disk of the words of a corpus, one vector an occurrence.

        An index that is there already is opened; a build that was stopped goes on. The settings are
        those of `firth.api.neighbours.index_words`, for instance layers=(-2, -1).
        """
        return index_words(self, corpus, directory, **how)

    def neighbours(self, text: Text, index: WordIndex | str | Path, **how: Any) -> Neighbours:
        """The occurrences in an index that are nearest to a word in its context.

        The word stands in square brackets: "open a [bank] account". The settings are those of
        `firth.api.neighbours.find_neighbours`, for instance top_k=20 or among="same".
        """
        return find_neighbours(self, text, index, **how)

    def fill(self, texts: Text | Sequence[str], *, top_k: int = 5) -> list[Any]:
        """The most probable tokens for the blanks of texts.

        Returns:
            For one string, its candidates (a list for each of several blanks); for a list of
            strings, such a result for each.
        """
        self.require_context("fill")
        if not self.fills:
            other = isinstance(self.model, SourceToTarget)
            raise UnsupportedError(
                "fill needs a masked language model, and this one writes "
                f"{'texts for others' if other else 'left to right'}; use generate instead"
            )
        single = isinstance(texts, str)
        encodings = self.encode([texts] if single else list(texts))
        found = fill(self.engine, self.tokenizer, encodings, top_k)
        results: list[Any] = [blanks[0] if len(blanks) == 1 else blanks for blanks in found]
        return results[0] if single else results

    def score(
        self, texts: Sequence[Text], *, within_word: bool = False, pseudo: bool = False
    ) -> list[Score]:
        """Log-likelihood of each text, token by token; where there is none, pseudo-log-likelihood.

        Args:
            texts: strings, or lists of the user's own words.
            within_word: mask the later tokens of the scored token's word too.
            pseudo: of a hybrid, which has both, the pseudo-log-likelihood.

        Raises:
            UnsupportedError: if the model has no such score.
        """
        self.require_context("score")
        encodings = self.encode(texts)
        if within_word and isinstance(self.model, SourceToTarget):
            raise UnsupportedError("within_word is for masked models; leave it out")
        if not self.causal or (pseudo and self.fills):
            return score_masked(self.engine, self.tokenizer, encodings, within_word=within_word)
        if within_word or pseudo:
            raise UnsupportedError(
                "pseudo and within_word are for models that fill blanks; a causal one sees no "
                "later tokens: leave them out (of a hybrid, within_word needs pseudo)"
            )
        return score_causal(self.engine, self.tokenizer, encodings)

    def minimal_pairs(
        self,
        path: str | Path,
        *,
        suite: Suite = "blimp",
        limit: int | None = None,
        within_word: bool = False,
        pseudo: bool = False,
    ) -> Report:
        """How often the model finds the good sentence of a pair likelier than the bad one.

        Args:
            path: a file or folder of pairs.
            suite: "blimp" for its own files, "pairs" for files with columns good and bad.
            limit: of each paradigm only the first pairs, for a quick look.
            within_word: as in `score`.
            pseudo: as in `score`.

        Returns:
            Accuracy as the unweighted mean over paradigms, with and without those whose pairs are
            permutations of the same words; in the details fields, paradigms, `method`, and two
            baselines counted in the training text, where the run directory still holds that.

        Raises:
            DataError: pairs that cannot be read.
            DivergedError: scores that are no finite numbers.
        """
        pairs = read_suite(path, suite=suite, limit=limit)
        sentences = encode_pairs(self.tokenizer, [(pair.good, pair.bad) for pair in pairs])
        shards = training_tokens(self.path, self.tokenizer)
        score = partial(self.score, within_word=within_word, pseudo=pseudo)
        differences, method = model_differences(sentences, score)
        baselines = baseline_differences(sentences, shards, self.tokenizer) if shards else {}
        return report(pairs, differences, baselines, suite=suite, method=method, limit=limit)

    def word_similarity(self, path: str | Path, *, layer: int = -1) -> Report:
        """Spearman's correlation of cosines with human judgements, over files of pairs of words."""
        return word_similarity(self, path, layer=layer)

    def save_word_vectors(self, path: str | Path) -> int:
        """Writes the vectors of a static model's words for other programs: .vec, .txt or .bin."""
        return save_word_vectors(self, path)

    def generate(
        self, texts: Text | Sequence[str], *, stop: Sequence[str] = (), **settings: Any
    ) -> Any:
        """Continues texts; an encoder-decoder writes a text for each source.

        Args:
            texts: one prompt (or source) or several; the prompt "" lets the model begin.
            stop: strings that end a text; they are cut off.
            settings: those of `firth.Decoding`, for instance max_tokens=100, temperature=0.8.

        Returns:
            A `Generated` for one string; for a list of strings, one for each.

        Raises:
            UnsupportedError: if the model has no decoder, or a prompt leaves no room in its window.
        """
        found = generate_texts(self, texts, decoding(settings), stop)
        return found[0] if isinstance(texts, str) else found

    def stream(self, text: str, *, stop: Sequence[str] = (), **settings: Any) -> Iterator[str]:
        """Continues one text, piece by piece as it comes."""
        return stream_text(self, text, decoding(settings), stop)

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Writes a model directory that `firth.load` and, for stock shapes, `transformers` read.

        Raises:
            ConfigError: if it holds an adapted model or a run, or without `overwrite` any model.
            ResourceError: if it cannot be written; the old model is still there then.
        """
        segments, ids = self.model.config.num_segments > 1, self.tokenizer.vocabulary

        def fill(path: Path) -> None:
            self.tokenizer.save(path, model_max_length=self.max_length, segments=segments)
            save_model(path, self.model, vocabulary=ids, firth=self.record, lm_head=self.lm_head)

        write_model(directory, fill, "config.json", overwrite=overwrite)

    def require_context(self, use: str) -> None:
        """Refuses a use that needs predictions from context, where the model has none."""
        if isinstance(self.model, Static):
            raise UnsupportedError(
                f"{use} needs a model that reads context, and these are word vectors; embed, "
                "word_similarity and adapt work"
            )
        self._require_head(use)

    def _require_head(self, use: str) -> None:
        if not self.lm_head:
            raise UnsupportedError(
                f"{self.path or 'this model'}: {use} needs the language-model head, which is not "
                "there; load the model that it was made from, or pre-train one (embed and "
                "hidden_states work)"
            )

    def encode(self, texts: Sequence[Text], *, whole: bool = False) -> list[Encoding]:
        """Tokens of texts; `whole` refuses those that are longer than the window.

        Raises:
            ConfigError: for a string in place of a list, or a text that is too long.
        """
        encodings = self.tokenizer.encode_batch(texts)
        longer = (n for n, e in enumerate(encodings, 1) if len(e.ids) > self.max_length)
        if whole and (n := next(longer, None)) is not None:
            raise ConfigError(
                f"text {n} has {len(encodings[n - 1].ids)} tokens and the model's window is "
                f"{self.max_length}; cut it (embed reads long texts in overlapping windows)"
            )
        return encodings


def show_words(model: Any, tokenizer: Tokenizer) -> None:
    """Lets a model that spells words see those of its tokenizer, also the unseen ones to come."""
    if getattr(model, "reads_words", False):
        model.use_words(tokenizer.open())


def _array(encoding: Encoding, values: np.ndarray) -> TextArray:
    return TextArray(tokens=encoding.tokens, offsets=encoding.offsets, values=values)


__all__ = ["Filled", "Generated", "LanguageModel", "Score", "TextArray", "Vectors"]
