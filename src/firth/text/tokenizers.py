"""A tokenizer: text to token ids and back, with the place of every token in the text.

tokenizer = Tokenizer.train(corpus, "wordpiece", 8192)
tokenizer.encode("The tide turned.").tokens
tokenizer.save("run/")  # loads in transformers.AutoTokenizer

The work is done by the `tokenizers` library. For encoding a whole corpus, see `firth.text.shards`.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tokenizers import Tokenizer as Backend

from firth.atomic import output_path, write_text
from firth.errors import CheckpointError, ConfigError
from firth.protocols import ABSENT, Encoding, Text, Vocabulary
from firth.text.encoding import utf8_size
from firth.text.special_tokens import CONFIG_FILE, ROLES, find_vocabulary, with_opening
from firth.text.tokenizer_settings import canonical, read_settings, with_settings
from firth.text.tokenizer_training import backend_of_words, train_backend
from firth.text.truncation import check_length, cut_pair, truncating
from firth.text.word_cache import WordCache, cuts_words, words_at
from firth.text.words import WordReader, Words, check_texts, encoded, joined, whole_characters

TOKENIZER_FILE = "tokenizer.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
INPUT_NAMES = ["input_ids", "token_type_ids", "attention_mask"]

T = TypeVar("T")


class Tokenizer:
    """Turns text into token ids. Make one with `Tokenizer.train` or `Tokenizer.load`.

    Args:
        tokenizer_json: the content of a tokenizer.json; padding and truncation, which files saved
            after padded use have on, are switched off.
        config: what a tokenizer_config.json holds; it names the special tokens, unless they have
            well-known names. Kept by `save`.
        where: the place to name in an error.

    Raises:
        CheckpointError: if the content is no tokenizer, or a special token that models need cannot
            be found.
    """

    def __init__(
        self, tokenizer_json: str, config: dict[str, Any] | None = None, *, where: object = ""
    ) -> None:
        # The library reads numbers with a rounding error, so what it would write is not the same.
        self._json = canonical(tokenizer_json, where)
        try:
            self._backend = Backend.from_str(self._json)
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(f"{where}: not a tokenizer.json: {error}") from error
        self._vocabulary = find_vocabulary(self._backend, config or {}, where)
        description = json.loads(self._json)
        self.whole_words = description["model"].get("type") == "WordLevel"
        self._cuts_words = cuts_words(description)
        self._truncating: dict[int, Backend] = {}
        self._reader = WordReader(self._backend, self._vocabulary) if self.whole_words else None
        self._config = self._plain_config() if config is None else config

    @classmethod
    def train(
        cls,
        documents: Iterable[str],
        kind: str = "wordpiece",
        vocab_size: int = 8192,
        *,
        lowercase: bool = False,
        strip_accents: bool = False,
        max_bytes: int = 1_000_000_000,
        min_frequency: int = 2,
        sentinels: int = 0,
    ) -> "Tokenizer":
        """Learns a vocabulary from documents.

        Args:
            documents: the texts, read once.
            kind: ``"wordpiece"``, as BERT: words are cut at punctuation, an unknown character makes
                its word unknown. ``"bpe"``, byte-level as GPT-2 and RoBERTa: nothing is unknown and
                white space is kept. ``"unigram"``, as SentencePiece: words keep their punctuation.
                ``"word"``: the most frequent words and marks, as they are. ``"whitespace"``: those
                of text that is cut into words by white space already. These two
                never cut the words of a list.
            vocab_size: most entries, special tokens included; little text gives fewer.
            lowercase: fold case.
            strip_accents: drop all combining marks. Beware: in many scripts they are vowels.
            max_bytes: most text to learn from; of more, documents spread evenly over all are taken.
            min_frequency: how often something must be seen to get an entry.
            sentinels: entries for tokens that stand for what is taken out of a text, as in T5.

        Raises:
            ConfigError: if `kind` is unknown or `vocab_size` too small for it.
            DataError: if there is no text.
        """
        backend = train_backend(
            documents,
            kind,
            vocab_size,
            lowercase=lowercase,
            strip_accents=strip_accents,
            max_bytes=max_bytes,
            min_frequency=min_frequency,
            sentinels=sentinels,
        )
        return cls(backend.to_str())

    @classmethod
    def of_words(cls, words: Sequence[str]) -> "Tokenizer":
        """One whose vocabulary is these words, behind the special tokens."""
        return cls(backend_of_words(words).to_str())

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a tokenizer from a run directory, a `transformers` directory or a tokenizer.json.

        Raises:
            CheckpointError: if there is no tokenizer.json, it cannot be read, or a special token
                that models need is neither named in the files beside it nor known by its name.
        """
        path = Path(path)
        file = path / TOKENIZER_FILE if path.is_dir() else path
        if not file.is_file():
            raise CheckpointError(
                f"{file}: no such file; give a directory with a {TOKENIZER_FILE}. An older "
                "directory gets one by transformers.AutoTokenizer.from_pretrained(directory)"
                ".save_pretrained(directory)"
            )
        tokens = read_settings(file.with_name(SPECIAL_TOKENS_FILE))
        config = {**tokens, **read_settings(file.with_name(CONFIG_FILE))}
        try:
            content = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file}: cannot be read ({error})") from error
        return cls(with_settings(content, config, where=file), config or None, where=file)

    def save(
        self,
        directory: str | Path,
        *,
        model_max_length: int | None = None,
        segments: bool | None = None,
    ) -> None:
        """Writes tokenizer.json and tokenizer_config.json, as `transformers.AutoTokenizer` reads.

        Args:
            directory: the folder, made if need be.
            model_max_length: longest sequence of the model, special tokens included.
            segments: whether `transformers` shall give the model ``token_type_ids``, which BERT
                takes and ModernBERT refuses; by default as before, or as the template has them.
        """
        directory = output_path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        config = dict(self._config)
        if model_max_length is not None:
            config["model_max_length"] = model_max_length
        if segments is not None:
            config["model_input_names"] = [
                name for name in INPUT_NAMES if segments or name != "token_type_ids"
            ]
        # The tokenizer last: where it is, the other file, which names its special tokens, is too.
        for name, content in ((CONFIG_FILE, config), (TOKENIZER_FILE, json.loads(self._json))):
            text = json.dumps(content, indent=2, ensure_ascii=False)
            write_text(directory / name, text)

    def opened_by_last(self) -> "Tokenizer":
        """The same vocabulary, whose texts open with the token that closes them, as GPT-2's do.

        For models of streams, which see that token alone between texts.
        """
        ends = self.vocabulary.first, self.vocabulary.last
        first, last = map(self.token, ends)
        names = {key: last for key in ROLES["first"] if key in self._config}
        config = {**self._config, ROLES["first"][0]: last, **names}
        return Tokenizer(with_opening(self._json, first, last, ends[1]), config)

    @property
    def vocabulary(self) -> Vocabulary:
        """Size, and the special tokens by role."""
        return self._vocabulary

    @cached_property
    def content_hash(self) -> str:
        """A hash of the tokenizer.json: equal tokenizers have equal hashes."""
        return hashlib.blake2b(self._json.encode(), digest_size=16).hexdigest()

    def open(self) -> Words:
        """Has unseen words get ids of their own, for a model that reads how a word is spelled.

        Raises:
            ConfigError: if the vocabulary is not one of whole words.
        """
        if self._reader is None:
            raise ConfigError(
                "this model spells whole words, and its tokenizer cuts them into pieces; use a "
                "tokenizer of the kind word or whitespace"
            )
        return self._reader.open()

    def to_json(self) -> str:
        """The tokenizer.json as a string."""
        return self._json

    def __repr__(self) -> str:
        return f"Tokenizer({type(self._backend.model).__name__}, {self._vocabulary.size:,} tokens)"

    def encode(self, text: Text, *, special_tokens: bool = True) -> Encoding:
        """Encodes one text; see `encode_batch`."""
        return self.encode_batch([text], special_tokens=special_tokens)[0]

    def encode_batch(self, texts: Sequence[Text], *, special_tokens: bool = True) -> list[Encoding]:
        """Encodes texts, with the place of every token.

        "[MASK]" in a text is the mask, and so for all special tokens. Where a text is a list of
        words, they are joined by spaces; each token belongs to the word in which it begins, its
        leading space aside. A word of which the tokenizer keeps nothing, such as an empty one, has
        no token.

        Args:
            texts: strings or lists of words.
            special_tokens: add the tokens that open and close a sequence.

        Raises:
            DataError: if a text cannot be written in UTF-8.
        """
        check_texts(texts)
        if self._reader is not None:
            return [self._reader.encode(text, special_tokens=special_tokens) for text in texts]
        lines = [joined(text) for text in texts]
        encodings = encoded(self._backend.encode_batch, lines, special_tokens)
        return [
            self._encoding(text, line, encoding)
            for text, line, encoding in zip(texts, lines, encodings, strict=True)
        ]

    def encode_ids(
        self,
        texts: Sequence[Text],
        *,
        special_tokens: bool = True,
        max_length: int | None = None,
    ) -> list[np.ndarray]:
        """The ids alone, int64, several times faster than `encode_batch`.

        Args:
            texts: strings or lists of words.
            special_tokens: add the tokens that open and close a sequence.
            max_length: cut longer texts at their end, to this many tokens in all.

        Raises:
            ConfigError: if the special tokens alone are more than `max_length`.
            DataError: if a text cannot be written in UTF-8.
        """
        check_texts(texts)
        if self._reader is not None:
            return self._reader.encode_ids(
                texts, special_tokens=special_tokens, max_length=max_length
            )
        lines = [joined(text) for text in texts]
        num_special = self._backend.num_special_tokens_to_add(False) if special_tokens else 0
        backend = self._cut_at(max_length, num_special)
        encodings = encoded(backend.encode_batch_fast, lines, special_tokens)
        return [np.array(encoding.ids, np.int64) for encoding in encodings]

    def encode_pair(self, first: Text, second: Text) -> tuple[np.ndarray, np.ndarray]:
        """Encodes a pair as one sequence; see `encode_pairs_ids`."""
        return self.encode_pairs_ids([(first, second)])[0]

    def encode_pairs_ids(
        self, pairs: Sequence[tuple[Text, Text]], *, max_length: int | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Encodes pairs as sequences: ``[CLS] A [SEP] B [SEP]``, or as the tokenizer's template is.

        Args:
            pairs: of strings or lists of words.
            max_length: cut the longer text of a pair until both fit into this many tokens (Devlin
                et al. 2019, A.2).

        Returns:
            for each pair the ids and the segments, int64: 0 for the first text, 1 for the second
            (0 for both where the template has no segments, as RoBERTa's).

        Raises:
            ConfigError: if the special tokens alone are more than `max_length`.
            DataError: if a text cannot be written in UTF-8.
        """
        if self._reader is not None:
            return [self._reader.encode_pair(a, b, max_length) for a, b in pairs]
        lines = [(joined(first), joined(second)) for first, second in pairs]
        num_special = self._backend.num_special_tokens_to_add(True)
        if num_special == 0:  # GPT-2's would run into one
            return self._delimited(lines, max_length)
        backend = self._cut_at(max_length, num_special)
        encodings = encoded(backend.encode_batch_fast, lines, True)
        return [(np.array(e.ids, np.int64), np.array(e.type_ids, np.int64)) for e in encodings]

    def _delimited(
        self, pairs: Sequence[tuple[str, str]], max_length: int | None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pairs with a delimiter between them (Radford et al. 2018, section 3.3)."""
        check_length(max_length, 1)
        room, between = None if max_length is None else max_length - 1, self.vocabulary.last
        sides = [self.encode_ids(side, special_tokens=False) for side in zip(*pairs, strict=True)]
        cut = [cut_pair(first, second, room) for first, second in zip(*sides, strict=True)]
        return [
            (np.concatenate([a, [between], b]), np.repeat([0, 1], [len(a) + 1, len(b)]))
            for a, b in cut
        ]

    def encode_documents(self, documents: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Encodes text for pre-training: literally, and without special tokens.

        "[MASK]" in a document is six characters like any others.

        Returns:
            for each document the ids (int64), and whether each opens a word (bool).

        Raises:
            DataError: if a document cannot be written in UTF-8.
        """
        for index, document in enumerate(documents):
            utf8_size(document, index)
        encoded = self._word_cache.encode(documents)
        ends = np.cumsum(encoded.lengths)[:-1]
        ids = np.split(encoded.ids.astype(np.int64), ends)
        return list(zip(ids, np.split(encoded.opens_word, ends), strict=True))[: len(documents)]

    def decode(self, ids: Sequence[int], *, special_tokens: bool = False) -> str:
        """The text of some ids; special tokens, but for the unknown one, only if asked for."""
        hidden = {*self.vocabulary.special} - {self.vocabulary.unknown}
        shown = [i for i in map(int, ids) if special_tokens or i not in hidden]
        if self._reader is not None:
            return " ".join(map(self.token, shown))
        return self._backend.decode(shown, skip_special_tokens=False)

    def normalize(self, text: str) -> str:
        """The text as the vocabulary sees it: case, accents and forms of letters folded."""
        normalizer = self._backend.normalizer
        return normalizer.normalize_str(text) if normalizer else text

    def token(self, index: int) -> str:
        """The token of an id.

        Raises:
            ConfigError: if no token has this id.
        """
        token = self._backend.id_to_token(int(index)) if index >= 0 else None
        if token is None and self._reader is not None and index >= 0:
            token = self._reader.token(int(index))
        if token is None:
            raise ConfigError(f"no token has the id {index}; ids go to {self.vocabulary.size - 1}")
        return token

    def _encoding(self, text: Text, line: str, encoding: Any) -> Encoding:
        offsets = whole_characters(line, np.array(encoding.offsets, np.int64).reshape(-1, 2))
        if isinstance(text, str) and self._cuts_words:
            library_words = [-1 if word is None else word for word in encoding.word_ids]
            words = np.array(library_words, np.int64)
        else:
            words = words_at(offsets, line, text)
            words[np.array(encoding.special_tokens_mask, bool)] = -1
        ids = encoding.ids
        return Encoding(
            text=line,
            ids=np.array(ids, np.int64),
            tokens=list(map(self.token, ids)),
            offsets=offsets,
            words=words,
        )

    def _cut_at(self, max_length: int | None, num_special: int) -> Backend:
        """What encodes to so many tokens at most, `num_special` of which are special ones."""
        if max_length is None:
            return self._backend
        check_length(max_length, num_special)
        if max_length not in self._truncating:
            self._truncating[max_length] = truncating(self._backend, max_length)
        return self._truncating[max_length]

    def _plain_config(self) -> dict[str, Any]:
        """What `transformers` must know to use tokenizer.json as it is."""
        ids = {key: getattr(self._vocabulary, role) for role, keys in ROLES.items() for key in keys}
        names = {key: self.token(index) for key, index in ids.items() if index != ABSENT}
        _, segments = self.encode_pair("a", "b")
        inputs = {"model_input_names": INPUT_NAMES} if segments.any() else {}
        plain = {"tokenizer_class": "PreTrainedTokenizerFast", **names, **inputs}
        return {**plain, "clean_up_tokenization_spaces": False}

    @cached_property
    def _word_cache(self) -> WordCache:
        return WordCache(self._json)
