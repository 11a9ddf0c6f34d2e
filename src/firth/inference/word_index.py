"""An index of the words of a corpus on disk: a contextual vector for every occurrence.

    corpus --sentence by sentence--> vectors of its words --> memory-mapped files

A folder holds one row an occurrence (`vectors`, `places`, `types`), the sentences in which they
stand (`sentences`, `text`), the distinct words (`words.txt`), what `firth.inference.index_facts`
adds once all rows are there, and `manifest.json`, which says what it was made from.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from firth.errors import CheckpointError, DataError
from firth.inference.isotropy import Isotropy

FORMAT = 1
MANIFEST = "manifest.json"

ROW_FILES = {
    "vectors.f16": "<f2",  # (rows, D)
    "places.u32": "<u4",  # (rows, 4): sentence, word in it, begin and end in its characters
    "types.u32": "<u4",  # (rows) the word, as a line of words.txt
    "sentences.u64": "<u8",  # (sentences, 4): begin and end in text.utf8; document; place in that
    "text.utf8": "<u1",
    "words.txt": "<u1",  # distinct words with case folded, one a line
}
"""What is written while the corpus is read, and the numbers that are in it."""

FACT_FILES = {
    "norms.f32": "<f4",  # (2, rows) length of each vector, as it is and corrected
    "directions.f32": "<f4",  # (1 + K, D): mean, principal directions
    "static_words.u32": "<u4",  # (words) those frequent enough for a vector of their own
    "static.f32": "<f4",  # (words, D) mean over a word's occurrences
}
"""What is computed from all rows."""


@dataclass(frozen=True)
class WordIndex:
    """Word occurrences with their vectors, read from a folder as they are needed."""

    path: Path
    manifest: Mapping[str, Any]
    _maps: dict[str, np.ndarray] = field(repr=False)

    @staticmethod
    def open(directory: str | Path) -> "WordIndex":
        """Opens an index that was built.

        Raises:
            CheckpointError: if the folder holds no index, or one that is damaged.
        """
        path = Path(directory)
        manifest = read_manifest(path)
        if manifest is None:
            raise CheckpointError(
                f"{path}: no index of words is there (expected {MANIFEST}); build one with "
                "lm.index_words(corpus, directory) or firth neighbours MODEL CORPUS --index"
            )
        maps = {name: _map(path, name, manifest) for name in (*ROW_FILES, *FACT_FILES)}
        return WordIndex(path, manifest, maps)

    @property
    def num_rows(self) -> int:
        """Word occurrences."""
        return self.manifest["rows"]

    @property
    def dimensions(self) -> int:
        """D."""
        return self.manifest["dimensions"]

    @property
    def automatic(self) -> int:
        """Directions that the correction removes by default."""
        return self.manifest["directions_removed"]

    @property
    def vectors(self) -> np.ndarray:
        """(rows, D) float16."""
        return self._maps["vectors.f16"].reshape(-1, self.dimensions)

    @property
    def places(self) -> np.ndarray:
        """(rows, 4) sentence, index of the word in it, begin and end in its characters."""
        return self._maps["places.u32"].reshape(-1, 4)

    @property
    def types(self) -> np.ndarray:
        """(rows) index in `words`."""
        return self._maps["types.u32"]

    @property
    def norms(self) -> np.ndarray:
        """(2, rows) lengths of the vectors, as they are and with the default correction."""
        return self._maps["norms.f32"].reshape(2, -1)

    @cached_property
    def words(self) -> list[str]:
        """Distinct words, with case folded."""
        return self._maps["words.txt"].tobytes().decode().split("\n")[:-1]

    @cached_property
    def isotropy(self) -> Isotropy:
        """Mean and principal directions of the rows."""
        rows = torch.from_numpy(self._maps["directions.f32"].reshape(-1, self.dimensions).copy())
        return Isotropy(rows[0], rows[1:])

    @cached_property
    def static(self) -> tuple[list[str], np.ndarray]:
        """Frequent words and their (words, D) mean vectors (Bommasani et al. 2020)."""
        words = [self.words[i] for i in self._maps["static_words.u32"]]
        return words, self._maps["static.f32"].reshape(-1, self.dimensions)

    def sentence(self, index: int) -> tuple[str, int, int]:
        """A sentence's text, its document, and where it begins in that, in characters."""
        begin, end, document, offset = self._maps["sentences.u64"].reshape(-1, 4)[index].tolist()
        return self._maps["text.utf8"][begin:end].tobytes().decode(), document, offset

    def chunk(self, begin: int, size: int) -> Tensor:
        """(n, D) float32 rows from `begin` on."""
        return torch.from_numpy(self.vectors[begin : begin + size]).float()


def read_manifest(path: Path) -> dict[str, Any] | None:
    """What the index in a folder was made from, or None if there is none.

    Raises:
        CheckpointError: if it cannot be read, or is of another format.
    """
    file = path / MANIFEST
    if not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        version = manifest["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file}: not the manifest of an index: {error!r}") from error
    if version != FORMAT:
        raise CheckpointError(
            f"{file}: format {version}, expected {FORMAT}; build the index again in another folder"
        )
    return manifest


def _map(path: Path, name: str, manifest: Mapping[str, Any]) -> np.ndarray:
    file, expected = path / name, manifest["sizes"][name]
    found = file.stat().st_size if file.is_file() else None
    if found != expected:
        size = "no such file" if found is None else f"{found:,} bytes"
        raise CheckpointError(
            f"{file}: {size}, expected {expected:,} bytes by the manifest; the index is damaged: "
            f"delete {path} and build it again"
        )
    dtype = {**ROW_FILES, **FACT_FILES}[name]
    if not expected:
        return np.empty(0, dtype)
    return np.memmap(file, dtype, mode="c")  # torch wants memory that it could write to


def check_same(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuses an index that was made from something else.

    Raises:
        DataError: naming what differs.
    """
    names = {
        "model": "another model",
        "tokenizer": "another tokenizer",
        "corpus": "other text",
        "layers": "other layers",
        "split": "other word boundaries",
        "filter": "another choice of words",
    }
    for key, what in names.items():
        if key in expected and found.get(key) != expected[key]:
            raise DataError(
                f"{path}: this index was built from {what} ({key}: found {found.get(key)}, "
                f"expected {expected[key]}); delete the folder to build it anew, or name another "
                "one"
            )
