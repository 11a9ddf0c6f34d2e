"""What a model makes of a few sentences of the user's own, for the log of a run."""

from collections.abc import Sequence

import numpy as np

from firth.inference.forward import Engine
from firth.inference.generation import Decoding, continuations
from firth.inference.scoring import fill
from firth.protocols import Tokenizer


def filled_blanks(
    engine: Engine, tokenizer: Tokenizer, texts: Sequence[np.ndarray], rng: np.random.Generator
) -> list[str]:
    """For each text (token ids), one token blanked at random, and the three best guesses."""
    blank = tokenizer.token(tokenizer.vocabulary.mask)
    questions, answers = [], []
    for ids in map(np.ndarray.tolist, texts):
        at = int(rng.integers(len(ids)))
        before, answer, after = (tokenizer.decode(p) for p in (ids[:at], [ids[at]], ids[at + 1 :]))
        questions.append(f"{before} {blank} {after}".strip())
        answers.append(answer)
    found = fill(engine, tokenizer, tokenizer.encode_batch(questions), 3)
    return [
        _one_line(
            f"{question}  ->  {', '.join(f'{g.token} {g.probability:.2f}' for g in blanks[0])}"
            f"  (was: {answer})"
        )
        for question, answer, blanks in zip(questions, answers, found, strict=True)
    ]


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
        last=vocabulary.last,
        stop=lambda _: False,
        size=vocabulary.size,
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
        last=vocabulary.last,
        stop=lambda _: False,
        size=vocabulary.size,
        sources=closed,
    )
    return [
        _one_line(f"{tokenizer.decode(source.tolist())}  ->  {tokenizer.decode(one.ids)}")
        for source, one in zip(sources, found, strict=True)
    ]


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n")
