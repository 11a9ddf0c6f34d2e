"""What a model makes of a few sentences of the user's own, for the log of a run."""

from collections.abc import Sequence

import numpy as np

from firth.inference.forward import Engine
from firth.inference.generation import Decoding, continuations, never_written
from firth.inference.scoring import fill, token_text
from firth.protocols import Encoding
from firth.text.tokenizers import Tokenizer


def filled_blanks(
    engine: Engine, tokenizer: Tokenizer, texts: Sequence[np.ndarray], rng: np.random.Generator
) -> list[str]:
    """For each text (token ids), one token blanked at random, and the three best guesses."""
    questions, answers = [], []
    for ids in texts:
        at = int(rng.integers(len(ids)))
        questions.append(_with_blank(tokenizer, ids, at))
        answers.append(token_text(tokenizer, int(ids[at])))
    found = fill(engine, tokenizer, questions, 3)
    return [
        _one_line(
            f"{question.text}  ->  "
            f"{', '.join(f'{g.token} {g.probability:.2f}' for g in blanks[0])}  (was: {answer})"
        )
        for question, answer, blanks in zip(questions, answers, found, strict=True)
    ]


def _with_blank(tokenizer: Tokenizer, ids: np.ndarray, at: int) -> Encoding:
    """Token ids as a text with a mask in place of one: not encoded anew, since pieces of words
    would become other tokens.
    """
    vocabulary = tokenizer.vocabulary
    inside = ids.astype(np.int64)
    inside[at] = vocabulary.mask
    before, after = (tokenizer.decode(part.tolist()) for part in (ids[:at], ids[at + 1 :]))
    whole = np.array([vocabulary.first, *inside, vocabulary.last])
    return Encoding(
        text=f"{before} {tokenizer.token(vocabulary.mask)} {after}".strip(),
        ids=whole,
        tokens=[tokenizer.token(int(i)) for i in whole],
        offsets=np.zeros((len(whole), 2), np.int64),
        words=np.array([-1, *np.arange(len(ids)), -1]),
    )


def continued_texts(
    engine: Engine, tokenizer: Tokenizer, texts: Sequence[np.ndarray], max_tokens: int = 12
) -> list[str]:
    """The first half of each text (token ids), and how the model goes on most probably."""
    vocabulary = tokenizer.vocabulary
    halves = [ids[: max(1, len(ids) // 2)] for ids in texts]
    prompts = [np.concatenate([[vocabulary.first], ids]) for ids in halves]
    how = Decoding(max_tokens=max_tokens)
    *_, found = continuations(
        engine,
        prompts,
        how,
        ends=[vocabulary.last],
        stop=lambda *_: False,
        size=vocabulary.size,
        never=never_written(tokenizer),
    )
    return [
        _one_line(f"{tokenizer.decode(half.tolist())}  ->  {tokenizer.decode(one.ids)}")
        for half, one in zip(halves, found, strict=True)
    ]


def written_texts(
    engine: Engine, tokenizer: Tokenizer, sources: Sequence[np.ndarray], max_tokens: int = 48
) -> list[str]:
    """Each source (token ids), and what an encoder-decoder makes of it most probably."""
    vocabulary = tokenizer.vocabulary
    closed = [np.concatenate([[vocabulary.first], ids, [vocabulary.last]]) for ids in sources]
    *_, found = continuations(
        engine,
        [np.array([vocabulary.first])] * len(closed),
        Decoding(max_tokens=max_tokens),
        ends=[vocabulary.last],
        stop=lambda *_: False,
        size=vocabulary.size,
        never=never_written(tokenizer),
        sources=closed,
    )
    return [
        _one_line(f"{tokenizer.decode(source.tolist())}  ->  {tokenizer.decode(one.ids)}")
        for source, one in zip(sources, found, strict=True)
    ]


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n")
