"""Learning a tokenizer from text: WordPiece, byte-level BPE, Unigram, word-level.

All keep case and accents unless told otherwise, and bring letters to their composed form (NFC), so
that an "é" is one letter however it was typed. Nothing else is normalised: BERT's removal of
control characters is off, because it takes the zero-width joiners that Persian, the languages of
India and emoji are written with.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from firth.config import suggest
from firth.errors import ConfigError, DataError
from firth.text.encoding import batches, utf8_size
from firth.text.words import check_texts

CHARACTER_COVERAGE = 0.99995
"""Share of the text that WordPiece and Unigram must be able to spell, as in SentencePiece; rarer
characters get no entry of their own and become unknown tokens."""
LONGEST_WORD = 1000
"""Characters of a word beyond which WordPiece does not know it. The library's 100 are fewer than a
clause of Thai, Lao or Khmer, which have no spaces between words, often has."""
WORD_COVERAGE = 0.8
"""Share of the text that frequent words must make up for Unigram to learn from them alone."""

BERT_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTA_TOKENS = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
"""Special tokens by role, in the order of their ids."""
SENTINEL = "<extra_id_{}>"
"""T5's name for the token that stands for the n-th stretch taken out of a text."""


def train_backend(
    documents: Iterable[str],
    kind: str,
    vocab_size: int,
    *,
    lowercase: bool,
    strip_accents: bool,
    max_bytes: int,
    min_frequency: int,
    sentinels: int,
) -> Tokenizer:
    """Trains a tokenizer; see `firth.text.tokenizers.Tokenizer.train`."""
    if kind not in KINDS:
        raise ConfigError(f"no tokenizer of kind {kind!r}; {suggest(kind, KINDS)}")
    parts = KINDS[kind]
    if vocab_size < parts.smallest + sentinels:
        raise ConfigError(
            f"vocab_size is {vocab_size}; kind {kind!r} needs at least {parts.smallest + sentinels}"
        )
    vocab_size -= sentinels
    sample = sample_documents(documents, max_bytes)
    if not any(map(str.strip, sample)):
        raise DataError("there is no text to train a tokenizer on; check the corpus")
    sample = _learnable(sample, kind, vocab_size, min_frequency)
    normalizer = _normalizer(kind, lowercase, strip_accents)
    learner = _assemble(parts, parts.model(), normalizer)
    first = [*parts.special.values(), *(_spellings(learner, sample) if kind == "wordpiece" else ())]
    frequency = {} if kind == "unigram" else {"min_frequency": min_frequency}
    trainer = parts.trainer(
        vocab_size=vocab_size, special_tokens=first, show_progress=False, **frequency
    )
    try:
        learner.train_from_iterator(sample, trainer)
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(
            f"no vocabulary of {vocab_size} could be learned from this text: {error}; set another "
            "tokenizer.vocab_size (--vocab) or kind"
        ) from error
    _need_words(learner, len(parts.special), min_frequency)
    return _finish(kind, learner, normalizer, sentinels)


def _need_words(learner: Tokenizer, num_special: int, min_frequency: int) -> None:
    if learner.get_vocab_size() <= num_special:
        raise DataError(
            f"no word of the text occurs {min_frequency} times, so that the vocabulary would be "
            "empty; give more text, or set tokenizer.min_frequency to 1"
        )


def backend_of_words(words: Sequence[str]) -> Tokenizer:
    """A word-level tokenizer with these words behind the special tokens."""
    parts, normalizer = KINDS["word"], _normalizer("word", False, False)
    entries = dict.fromkeys([*parts.special.values(), *words])
    vocabulary = {token: i for i, token in enumerate(entries)}
    learner = _assemble(parts, models.WordLevel(vocabulary, unk_token="[UNK]"), normalizer)
    return _finish("word", learner, normalizer, 0)


def sample_documents(documents: Iterable[str], max_bytes: int) -> list[str]:
    """Documents spread evenly over all, at most `max_bytes` of UTF-8, in one pass.

    When what was kept grows too large, every other document is dropped, and from then on twice as
    many are skipped.

    Raises:
        ConfigError: for a single text in place of several.
    """
    check_texts(documents, once=True)
    kept: list[str] = []
    sizes: list[int] = []
    total, stride = 0, 1
    for index, document in enumerate(documents):
        if index % stride:
            continue
        kept.append(document)
        sizes.append(utf8_size(document, index))
        total += sizes[-1]
        while total > max_bytes and len(kept) > 1:
            kept, sizes, stride = kept[::2], sizes[::2], stride * 2
            total = sum(sizes)
    return kept


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The parts of a kind of tokenizer."""

    model: Callable[..., Any]
    trainer: Callable[..., Any]
    pre_tokenizer: Any
    decoder: Any
    special: dict[str, str]
    smallest: int
    """Smallest vocabulary that can be trained."""


KINDS = {
    "wordpiece": Kind(
        model=partial(models.WordPiece, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD),
        trainer=trainers.WordPieceTrainer,
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
        special=BERT_TOKENS,
        smallest=32,
    ),
    "bpe": Kind(
        model=models.BPE,
        trainer=partial(trainers.BpeTrainer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoder=decoders.ByteLevel(),
        special=ROBERTA_TOKENS,
        smallest=256 + len(ROBERTA_TOKENS),
    ),
    "unigram": Kind(
        model=models.Unigram,
        trainer=partial(trainers.UnigramTrainer, unk_token="<unk>"),
        pre_tokenizer=pre_tokenizers.Sequence(
            [
                pre_tokenizers.WhitespaceSplit(),
                pre_tokenizers.Metaspace(prepend_scheme="always"),
                # The model would find its special tokens, "<s>" say, inside words.
                pre_tokenizers.Split("<", "isolated"),
            ]
        ),
        decoder=decoders.Metaspace(prepend_scheme="always"),
        special=ROBERTA_TOKENS,
        smallest=32,
    ),
    "word": Kind(
        model=partial(models.WordLevel, unk_token="[UNK]"),
        trainer=trainers.WordLevelTrainer,
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        decoder=None,
        special=BERT_TOKENS,
        smallest=len(BERT_TOKENS) + 1,
    ),
    "whitespace": Kind(
        model=partial(models.WordLevel, unk_token="[UNK]"),
        trainer=trainers.WordLevelTrainer,
        pre_tokenizer=pre_tokenizers.WhitespaceSplit(),
        decoder=None,
        special=BERT_TOKENS,
        smallest=len(BERT_TOKENS) + 1,
    ),
}


def _assemble(parts: Kind, model: Any, normalizer: Any) -> Tokenizer:
    backend = Tokenizer(model)
    backend.normalizer = normalizer
    backend.pre_tokenizer = parts.pre_tokenizer
    if parts.decoder:
        backend.decoder = parts.decoder
    return backend


def _finish(kind: str, learner: Tokenizer, normalizer: Any, sentinels: int) -> Tokenizer:
    """The tokenizer with what was learned, and with special tokens; sentinels have the last ids."""
    parts, model = KINDS[kind], learner.model
    if kind == "wordpiece":
        model = parts.model(learner.get_vocab())
    if kind == "unigram":
        learned = json.loads(learner.to_str())["model"]
        model = models.Unigram(_steady(learned["vocab"]), learned["unk_id"])
    backend = _assemble(parts, model, normalizer)
    # As in RoBERTa: the space before "<mask>" is the mask's, so that it stands for "Ġword".
    backend.add_special_tokens(
        [AddedToken(token, lstrip=token == "<mask>") for token in parts.special.values()]
    )
    backend.add_special_tokens(
        [AddedToken(SENTINEL.format(i), lstrip=True) for i in range(sentinels)]
    )
    backend.post_processor = _post_processor(kind, backend, parts.special)
    return backend


def _normalizer(kind: str, lowercase: bool, strip_accents: bool) -> Any:
    steps = []
    if kind in ("wordpiece", "word", "whitespace"):
        # It also puts each Chinese character in a word of its own.
        steps.append(
            normalizers.BertNormalizer(
                clean_text=False,
                handle_chinese_chars=kind != "whitespace",
                strip_accents=strip_accents,
                lowercase=lowercase,
            )
        )
    else:
        steps += [normalizers.NFD(), normalizers.StripAccents()] if strip_accents else []
        steps += [normalizers.Lowercase()] if lowercase else []
    return normalizers.Sequence([*steps, normalizers.NFC()])


def _post_processor(kind: str, backend: Tokenizer, special: dict[str, str]) -> Any:
    first, last = special["cls"], special["sep"]
    pairs = {
        "[CLS]": "[CLS] $A [SEP] $B:1 [SEP]:1",
        "<s>": "<s> $A </s> </s> $B </s>",  # RoBERTa has no segments
    }
    template = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=pairs[first],
        special_tokens=[(token, backend.token_to_id(token)) for token in (first, last)],
    )
    if kind == "bpe":  # offsets leave out the space that a token holds
        return processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    return template


def _learnable(sample: list[str], kind: str, vocab_size: int, min_frequency: int) -> list[str]:
    """What a tokenizer of this kind is to learn from: no rare characters, words or markers."""
    special = KINDS[kind].special
    if kind in ("wordpiece", "unigram"):
        # As the learner sees it: Korean in jamo has few letters, and thousands when composed.
        sample = [unicodedata.normalize("NFC", text) for text in sample]
        sample = _without_rare_characters(sample, (vocab_size - len(special)) // 2)
    if kind == "whitespace":
        names = "|".join(map(re.escape, special.values()))
        sample = [re.sub(rf"(?<!\S)(?:{names})(?!\S)", " ", text) for text in sample]
    return _without_rare_words(sample, min_frequency) if kind == "unigram" else sample


def _without_rare_characters(texts: list[str], most: int) -> list[str]:
    """Replaces, by a space, characters beyond the coverage or beyond the `most` frequent ones."""
    counts = np.zeros(0x110000, np.int64)
    for batch in batches(texts, characters=1 << 20):
        codes = np.frombuffer("".join(batch).encode("utf-32-le"), "<u4")
        counts += np.bincount(codes, minlength=len(counts))
    order = np.argsort(-counts, kind="stable")
    covered = np.cumsum(counts[order]) - counts[order] < CHARACTER_COVERAGE * counts.sum()
    rare = np.setdiff1d(np.flatnonzero(counts), order[covered][:most])
    if not len(rare):
        return texts
    pattern = re.compile("[" + "".join(re.escape(chr(code)) for code in rare) + "]")
    return [pattern.sub(" ", text) for text in texts]


def _without_rare_words(texts: list[str], min_frequency: int) -> list[str]:
    """Leaves words seen fewer than `min_frequency` times out, unless they are much of the text.

    They are in text without spaces, where a word is a sentence, and in little text.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.split())
    frequent = {word for word, count in counts.items() if count >= min_frequency}
    size = sum(len(word) * count for word, count in counts.items())
    if sum(len(word) * counts[word] for word in frequent) < WORD_COVERAGE * size:
        return texts
    return [" ".join(filter(frequent.__contains__, text.split())) for text in texts]


def _spellings(backend: Tokenizer, texts: list[str]) -> list[str]:
    """The pieces that let WordPiece spell any word: each character, and its form inside a word.

    The trainer by itself keeps the forms that it has seen, in an order that changes with each run.
    """
    words = {word for text in texts for word in text.split()}
    alphabet = sorted(set(_normalize(backend, "\n".join(words))) - {" ", "\n"})
    inner = [character for character in alphabet if _is_inner(backend, character)]
    return [*alphabet, *(f"##{character}" for character in inner)]


def _is_inner(backend: Tokenizer, character: str) -> bool:
    """Whether a word can go on with this character, which punctuation and Chinese ones do not."""
    text = _normalize(backend, f"a{character}")
    return len(backend.pre_tokenizer.pre_tokenize_str(text)) == 1  # pyright: ignore


def _normalize(backend: Tokenizer, text: str) -> str:
    return backend.normalizer.normalize_str(text)  # pyright: ignore


def _steady(vocab: Sequence[Sequence[Any]]) -> list[tuple[str, float]]:
    """Unigram's pieces without what differs from run to run.

    That is the last digits of the scores, and which characters of last resort, those less likely
    than any longer piece, come first.
    """
    pieces: list[tuple[str, float]] = [(piece, score) for piece, score in vocab]
    special, learned = pieces[: len(ROBERTA_TOKENS)], pieces[len(ROBERTA_TOKENS) :]
    lowest = min(score for _, score in learned)
    rare = min((score for piece, score in learned if len(piece) > 1), default=lowest)
    steady = [
        (piece, round(lowest if len(piece) == 1 and score < rare else score, 6))
        for piece, score in learned
    ]
    return special + sorted(steady, key=lambda entry: (-entry[1], entry[0]))
