"""firth's side of a training benchmark: its token files, packed sequences, objective and loop."""

from pathlib import Path
from typing import Any

from timing import Pace


def train(
    pace: Pace,
    model: Any,
    objective: Any,
    shards: Path,
    tokenizer: Path,
    *,
    length: int,
    batch_size: int,
    precision: str,
) -> None:
    """Runs firth's loop until this process is told to end; a lap is a step, its loading included.

    Args:
        pace: whom to tell.
        model: the network.
        objective: what it learns.
        shards: the token files.
        tokenizer: whose vocabulary they are in.
        length: tokens of a sequence.
        batch_size: sequences of a batch.
        precision: of the matrix products.
    """
    from firth.text.batches import ObjectiveBatches, PackedSequences
    from firth.text.shards import Shards
    from firth.text.tokenizers import Tokenizer
    from firth.training import AdamW, State, Training, steps

    training = Training(
        batch_tokens=batch_size * length,
        optimizer=AdamW(lr=5e-5),
        precision=precision,  # type: ignore[arg-type]
    )
    packed = PackedSequences(
        Shards.open(shards),
        Tokenizer.load(tokenizer).vocabulary,
        max_length=length,
        batch_tokens=training.batch_tokens,
        seed=0,
    )
    state = State.begin(model, training)
    batches = ObjectiveBatches(packed, objective)
    parameters = sum(p.numel() for p in state.model.parameters())
    pace.start(parameters=parameters, tokens_a_step=packed.batch_tokens)
    for step in steps(state, objective, batches, training, total_steps=1_000_000):
        pace.lap(loss=step.loss, tokens_a_step=state.tokens / step.step)
