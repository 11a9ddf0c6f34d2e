"""Fine-tuning on short sentences: firth's path against `transformers.Trainer`.

    python benchmarks/bench_finetuning.py

A lap is an optimizer step on 32 sentences of SST-2; a round is a whole epoch, since batches of like
length differ in cost. Dropout is 0.1 everywhere on both sides, and all weights are trained.
"""

import argparse

from data import labelled_sentences, tokenizer_folder
from peers import load_tokenizer, train
from report import compare, milliseconds, parser, publish, rate, timing_table
from timing import Contender, Pace, run

VOCABULARY, BATCH, LONGEST = 8192, 32, 128


def firth(pace: Pace, shape: tuple[int, int], sentences: int, precision: str) -> None:
    """The pieces that `FineTuning.fit` puts together, without its scoring of dev examples."""
    import torch

    from firth.adaptation import FineTuning
    from firth.adaptation.fitting import labelled_batches
    from firth.adaptation.network import EncodedExamples, TaskObjective
    from firth.device import prepare_process
    from firth.interop.huggingface import stock_head
    from firth.models.bert import Bert, BertConfig
    from firth.tasks.classification import Classification
    from firth.text.tokenizers import Tokenizer
    from firth.training import AdamW, Schedule, State, Training, steps

    prepare_process()
    torch.manual_seed(0)
    layers, width = shape
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_layers=layers,
        num_heads=width // 64,
        intermediate_size=4 * width,
    )
    task = Classification(text="sentence", label="label")
    examples = task.read(labelled_sentences(sentences))
    task = task.fit_labels(examples)
    adaptation = FineTuning(batch_size=BATCH, lr=5e-5, dropout=0.1, max_length=LONGEST)
    head = stock_head(config, task.num_outputs, adaptation.dropout)
    network = adaptation.network(Bert(config, pooler=False), head, 0)
    data = EncodedExamples.of(examples, Tokenizer.load(tokenizer_folder(VOCABULARY)), LONGEST)
    batches = labelled_batches(task, (examples, data), BATCH, 0)
    training = Training(
        optimizer=AdamW(lr=adaptation.lr, beta2=0.999, weight_decay=adaptation.weight_decay),
        schedule=Schedule(warmup=adaptation.warmup),
        precision=precision,  # type: ignore[arg-type]
        workers=0,
    )
    state = State.begin(network, training)
    lengths = [len(ids) for ids in data.ids]
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    pace.start(
        parameters=parameters, mean_tokens=sum(lengths) / len(lengths), most_tokens=max(lengths)
    )
    for step in steps(state, TaskObjective(task), batches, training, total_steps=1_000_000):
        pace.lap(loss=step.loss)


def trainer(pace: Pace, shape: tuple[int, int], sentences: int, bf16: bool, sampling: str) -> None:
    """`BertForSequenceClassification` in a `Trainer`, each batch padded to its longest sentence."""
    import datasets
    import torch
    from transformers import BertConfig, BertForSequenceClassification, DataCollatorWithPadding

    from firth.tasks.classification import Classification

    torch.manual_seed(0)
    layers, width = shape
    tokenizer = load_tokenizer(tokenizer_folder(VOCABULARY))
    task = Classification(text="sentence", label="label")
    examples = task.read(labelled_sentences(sentences))
    task = task.fit_labels(examples)
    encoded = tokenizer([e.texts[0] for e in examples], truncation=True, max_length=LONGEST)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    columns = {**encoded, "labels": task.targets(examples).tolist(), "length": lengths}
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    config.num_labels = task.num_outputs
    model = BertForSequenceClassification(config)
    train(
        pace,
        model,
        datasets.Dataset.from_dict(columns),
        DataCollatorWithPadding(tokenizer),
        batch_size=BATCH,
        bf16=bf16,
        train_sampling_strategy=sampling,
        facts={
            "parameters": sum(p.numel() for p in model.parameters()),
            "mean_tokens": sum(lengths) / len(lengths),
            "most_tokens": max(lengths),
        },
    )


def contenders(shape: tuple[int, int], sentences: int) -> list[Contender]:
    """firth first: the others are held against it."""
    work = {"shape": shape, "sentences": sentences}
    ours = [
        Contender(
            name=name,
            work="firth",
            options={**work, "precision": precision},
            allocator_note="glibc, mallopt by firth",
        )
        for name, precision in (("firth", "auto"), ("firth, float32", "float32"))
    ]
    theirs = [
        Contender(
            name=name,
            work="trainer",
            options={**work, "bf16": bf16, "sampling": sampling},
            tuned_allocator=bf16,
        )
        for name, bf16, sampling in (
            ("Trainer as installed", False, "random"),
            ("Trainer, bf16", True, "random"),
            ("Trainer, bf16, by length", True, "group_by_length"),
        )
    ]
    return [*ours, *theirs]


def arguments() -> argparse.Namespace:
    options = parser(__doc__ or "", rounds=5)
    options.add_argument("--sentences", type=int, default=1920, help="of SST-2's training part")
    given = options.parse_args()
    if given.quick:
        given.rounds, given.sentences, given.patience = 1, 2 * BATCH, 0
    return given


def main() -> None:
    given = arguments()
    shape, sentences = (1, 64) if given.quick else (6, 384), given.sentences
    timing = compare(
        contenders(shape, sentences),
        given,
        laps=-(-sentences // BATCH),
    )
    facts = timing.measured[0].facts
    note = (
        f"{sentences:,} sentences of {facts['mean_tokens']:.1f} tokens in the mean, at most "
        f"{facts['most_tokens']}; vocabulary {VOCABULARY:,}; {facts['parameters']:,} parameters "
        "trained."
    )
    extra = [
        ("ms a step", milliseconds),
        ("sentences a second", rate(BATCH)),
        ("tokens a second", rate(BATCH * facts["mean_tokens"])),
    ]
    title = f"{shape[0]}x{shape[1]}, batch {BATCH}"
    publish("finetuning", given, [timing_table(timing, title=title, note=note, extra=extra)])


if __name__ == "__main__":
    run(main, {"firth": firth, "trainer": trainer})
