"""A small training run as a process of its own, for tests that kill it or start several.

python -m tests.train_process RUN WORKERS ACCUMULATION OPTIMIZER [STEPS]
"""

import sys
from pathlib import Path

import torch

from firth.objectives import MaskedLM
from firth.text.batches import ObjectiveBatches, PackedSequences
from firth.training import AdamW, HeldOut, Muon, Run, Schedule, State, Training, train
from firth.training.distributed import join, leave
from tests.sources import VOCABULARY, ListSource, markov_documents, tiny_bert


def main() -> None:
    run, workers, accumulation, optimizer = Path(sys.argv[1]), *sys.argv[2:5]
    total = int(sys.argv[5]) if len(sys.argv) > 5 else 40
    torch.set_num_threads(1)
    ranks, _ = join(torch.device("cpu"))
    run.mkdir(parents=True, exist_ok=True)
    training = Training(
        batch_tokens=512,
        accumulation=int(accumulation),
        optimizer={"adamw": AdamW(lr=3e-3), "muon": Muon(lr=0.01)}[optimizer],
        schedule=Schedule(warmup=0.1),
        average=0.9,
        precision="float32",
        log_every=1,
        evaluate_every=10,
        save_every=5,
        workers=int(workers),
    )
    packed = PackedSequences(
        ListSource(markov_documents(0, 300)),
        VOCABULARY,
        max_length=16,
        batch_tokens=512,
        seed=0,
    )
    batches = ObjectiveBatches(packed, MaskedLM(), total_steps=total)
    torch.manual_seed(0)
    model = tiny_bert(dropout=0.1)
    train(
        State.begin(model, training),
        MaskedLM(),
        batches,
        training,
        Run(path=run, total_steps=total, valid={"": HeldOut(batches, 2)}, ranks=ranks),
    )
    leave()


if __name__ == "__main__":
    main()
