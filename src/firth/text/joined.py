"""The corpus as one text: documents end to end, with a separator between them."""

import numpy as np

from firth.text.batches import TokenSource


class JoinedDocuments:
    """A token source whose one document is all documents of another, joined by a separator.

    So sequences are filled to their full length across the borders of documents: the
    "full-sentences" input of RoBERTa (Liu et al. 2019, section 4.2), with its extra separator token
    between documents. For an objective that asks where a document ends this is the end of the whole
    corpus; the end of a document within a sequence is the separator itself.
    """

    def __init__(self, source: TokenSource, separator: int) -> None:
        """`separator` is the token's id: that which closes a sequence, in RoBERTa."""
        self.source, self.separator = source, separator
        starts = source.document_starts
        self.between = starts[1:-1] + np.arange(len(starts) - 2)
        """Positions of the separators."""
        self.document_starts = np.array([0, starts[-1] + len(self.between)])

    def tokens(self, begin: int, end: int) -> np.ndarray:
        """The ids from position `begin` up to `end`, separators counted."""
        first, last = self._separators(begin, end)
        ids = self.source.tokens(begin - first, end - last)
        return np.insert(ids, self._places(begin, first, last), self.separator)

    def opens_word(self, begin: int, end: int) -> np.ndarray:
        """Whether each token from `begin` up to `end` begins a word, as a separator does."""
        first, last = self._separators(begin, end)
        flags = self.source.opens_word(begin - first, end - last)
        return np.insert(flags, self._places(begin, first, last), True)

    def _separators(self, begin: int, end: int) -> tuple[int, int]:
        """How many stand before `begin`, and before `end`."""
        first, last = np.searchsorted(self.between, [begin, end])
        return int(first), int(last)

    def _places(self, begin: int, first: int, last: int) -> np.ndarray:
        """Where each belongs among the other tokens from `begin` on."""
        return self.between[first:last] - begin - np.arange(last - first)
