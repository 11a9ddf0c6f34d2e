"""Files of word vectors: word2vec's text and binary formats, fastText's .vec, GloVe's .txt.

    text:    a line "V D", which GloVe's files do not have; then a word a line, "word x1 ... xD"
    binary:  a line "V D"; then, for each word, "word " and D little-endian float32

`.bin` is binary, anything else text; .gz and .zst files of both are read.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from firth.atomic import write_file
from firth.errors import DataError, UnsupportedError
from firth.text.files import Statistics, read_chunks, read_text

logger = logging.getLogger(__name__)

SUFFIXES = (".vec", ".txt", ".bin")
_MOST_DIMENSIONS = 1_000_000
_FASTTEXT_MAGIC = (793712314).to_bytes(4, "little")


def is_vector_file(path: Path) -> bool:
    """Whether a file's name says that it holds word vectors."""
    return any(suffix.lower() in SUFFIXES for suffix in path.suffixes[-2:])


def begins_as_vectors(path: Path) -> bool:
    """Whether a file begins as word vectors do: "V D", or a word and the first numbers; or is
    empty.
    """
    if not path.stat().st_size:
        return True
    with path.open("rb") as file:
        first, second = (file.readline(1 << 20).split() for _ in range(2))
    if len(first) == 2 and all(cell.isdigit() for cell in first):
        return _is_binary(path) or len(second) == int(first[1]) + 1
    try:
        numbers = [float(number) for line in (first, second) for number in line[1:]]
    except ValueError:
        return False
    return len(first) == len(second) > 2 and len(numbers) == 2 * len(first) - 2


def write_word_vectors(path: str | Path, words: Sequence[str], vectors: np.ndarray) -> None:
    """Writes word vectors that gensim, fastText and word2vec's tools read.

    Text has nine digits, from which float32 comes back exactly.

    Args:
        path: .vec or .txt for text, .bin for the binary format.
        words: (V), without white space.
        vectors: (V, D).

    Raises:
        DataError: for a word that is empty or has white space in it.
        ResourceError: if the file cannot be written.
    """
    for word in words:
        if not word or any(character.isspace() for character in word):
            raise DataError(f"{path}: the word {word!r} cannot be written; leave it out")
    vectors = np.ascontiguousarray(vectors, "<f4")
    binary = _is_binary(Path(path))

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(f"{len(words)} {vectors.shape[1]}\n".encode())
            for word, vector in zip(words, vectors, strict=True):
                if binary:
                    file.write(word.encode() + b" " + vector.tobytes() + b"\n")
                else:
                    numbers = " ".join([format(x, ".9g") for x in vector.tolist()])
                    file.write(f"{word} {numbers}\n".encode())

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_file(path, fill)


def read_word_vectors(path: str | Path) -> tuple[list[str], np.ndarray]:
    """Reads word vectors; of a word that stands there twice, the first.

    What is no word, an empty one or bytes that are not UTF-8, is left out with a warning.

    Returns:
        V words and (V, D) float32 vectors.

    Raises:
        DataError: for a file that is damaged, or something else.
        UnsupportedError: for fastText's own .bin, which is a model.
    """
    path = Path(path)
    found, vectors = _read_binary(path) if _is_binary(path) else _read_text(path)
    rows = [row for row, word in enumerate(found) if word]
    words = [str(found[row]) for row in rows]
    if len(words) < len(found):
        logger.warning(
            "%s: %d words are empty or not UTF-8, and are left out", path, len(found) - len(words)
        )
        vectors = vectors[rows]
    if not words:
        raise DataError(f"{path}: no word vectors in it")
    first = dict[str, int]()
    for row, word in enumerate(words):
        first.setdefault(word, row)
    if len(first) < len(words):
        logger.warning("%s: %d words stand there twice", path, len(words) - len(first))
        words, vectors = list(first), vectors[list(first.values())]
    return words, vectors


def _is_binary(path: Path) -> bool:
    """By its name, in which .gz or .zst may follow."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix not in (".gz", ".zst")]
    return suffixes[-1:] == [".bin"]


def _read_text(path: Path) -> tuple[list[str | None], np.ndarray]:
    words: list[str | None] = []
    rows: list[np.ndarray] = []
    promised, size = None, 0
    for number, line in enumerate(_lines(path), 1):
        if number == 1 and len(cells := line.split()) == 2 and all(c.isdecimal() for c in cells):
            promised, size = int(cells[0]), _checked_size(path, line, int(cells[1]))
            continue
        line = line.rstrip(" ")
        if not line:
            continue
        size = size or len(line.split(" ")) - 1
        # From the right: a few published files have words with spaces in them.
        word, *numbers = line.rsplit(" ", size)
        try:
            row = np.array(numbers, np.float32)
        except ValueError:
            row = np.zeros(0, np.float32)
        longer = " " in word and _is_number(word.rsplit(" ", 1)[1])
        if len(row) != size or not size or longer or not np.isfinite(row).all():
            raise DataError(
                f"{path}: line {number} is {line[:50]!r}; expected a word and {size or 'some'} "
                "finite numbers, with single spaces between them (a text is no model: the model "
                "comes first)"
            )
        words.append(word)
        rows.append(row)
    if promised not in (None, len(words)):
        raise DataError(
            f"{path}: {len(words):,} words, and its first line says {promised:,}; it is cut short, "
            "or damaged: copy or download it again"
        )
    return words, np.stack(rows) if rows else np.zeros((0, size), np.float32)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _checked_size(path: Path, head: str | bytes, size: int) -> int:
    """Refuses vectors without dimensions, and with so many that the file must be damaged."""
    if not 0 < size <= _MOST_DIMENSIONS:
        raise DataError(
            f"{path}: begins with {head[:30]!r}, vectors of {size} dimensions; expected 1 to "
            f"{_MOST_DIMENSIONS:,}"
        )
    return size


def _lines(path: Path) -> Iterator[str]:
    rest = ""
    for piece in read_text(path, "strict", Statistics()):
        *lines, rest = (rest + piece).split("\n")
        yield from lines
    if rest:
        yield rest


def _read_binary(path: Path) -> tuple[list[str | None], np.ndarray]:
    """Words, None for bytes that are not UTF-8, and vectors."""
    data = b"".join(read_chunks(path))
    if data.startswith(_FASTTEXT_MAGIC):
        raise UnsupportedError(
            f"{path}: a model of the program fastText; read the .vec file beside it instead"
        )
    head, _, _ = data[:100].partition(b"\n")
    cells = head.split()
    if len(cells) != 2 or not all(cell.isdigit() for cell in cells):
        raise DataError(
            f"{path}: begins with {head[:30]!r}; expected the numbers of words and dimensions"
        )
    count, size = int(cells[0]), _checked_size(path, head, int(cells[1]))
    place = len(head) + 1
    at_most = (len(data) - place) // (4 * size + 1)  # however many a damaged file says
    words, vectors = list[str | None](), np.empty((min(count, at_most), size), np.float32)
    for row in range(count):
        space = data.find(b" ", place)
        end = space + 1 + 4 * size
        if space < 0 or end > len(data):
            raise DataError(
                f"{path}: ends after {row:,} of {count:,} words; copy or download it again"
            )
        words.append(_utf8(data[place:space].lstrip(b"\n")))
        vectors[row] = np.frombuffer(data, "<f4", size, space + 1)
        place = end
    if rest := data[place:].strip(b"\n"):
        raise DataError(
            f"{path}: {len(rest):,} bytes follow the {count:,} words that its first line promises; "
            "it is damaged: copy or download it again"
        )
    sums = vectors.sum(1, dtype=np.float64)  # finite where all numbers are: no float32 overflows it
    if len(bad := np.flatnonzero(~np.isfinite(sums))):
        raise DataError(
            f"{path}: the vector of {words[bad[0]]!r} (word {bad[0] + 1:,}) has numbers that are "
            "not finite; copy or download it again, or train it anew"
        )
    return words, vectors


def _utf8(word: bytes) -> str | None:
    """None for what is not UTF-8, such as a long word that the program word2vec cut in a letter."""
    try:
        return word.decode()
    except UnicodeDecodeError:
        return None
