"""Compare two ways to teach a model few labels, over several seeds. A few seconds.

python examples/adapt_with_seeds.py

Does a sentence of an abstract give background, or say what the paper is after? The model is that of
pretrain_and_fill.py, and the training is short: take the method from here, and not the numbers.
"""

from importlib import resources

import firth
from firth.tasks.metrics import mean_and_interval

ways = {
    "frozen": firth.Frozen(epochs=10, lr=3e-3),
    "fine-tuned": firth.FineTuning(epochs=3, lr=2e-3, pooling="mean", max_length=48),
}
seeds = (0, 1, 2)
roles = ("background", "objective")
task = firth.Classification(text="sentence", label="label")

with resources.as_file(resources.files("firth") / "demo_data") as folder:
    corpus = firth.Corpus.from_files(folder / "papers.valid.txt.gz", documents="line")
    recipe = firth.recipe("bert", size="tiny", vocab_size=1000).with_settings(
        {"training.steps": 30, "training.batch_tokens": 1024, "data.valid": 0.1}
    )
    lm = firth.pretrain(recipe, corpus, "runs/example")
    examples = {
        part: task.read(folder / f"roles.{part}.tsv.gz") for part in ("train", "dev", "test")
    }


def some(part: str, count: int) -> list:
    """As many sentences of either role."""
    return [e for role in roles for e in [e for e in examples[part] if e.label == role][:count]]


train, dev, test = some("train", 128), some("dev", 30), some("test", 60)
results = {}
for name, way in ways.items():
    scores = []
    for seed in seeds:
        model = firth.adapt(lm, task, train, way, dev=dev, seeds=(seed,))
        scores.append(model.evaluate(test).metrics["accuracy"])
    results[name] = mean, half = mean_and_interval(scores)
    print(f"{name:<11} accuracy {mean:.3f} ± {half:.3f} on {len(test)} test sentences")
