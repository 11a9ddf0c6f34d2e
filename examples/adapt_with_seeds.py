"""Compare two ways to teach a model few labels, over several seeds. A few seconds.

python examples/adapt_with_seeds.py

What role does a sentence play in its abstract? 300 labelled sentences, two ways, three seeds each.
The model is that of pretrain_and_fill.py: far too small, so take the method from here and not the
numbers.
"""

from importlib import resources

import firth
from firth.config import override
from firth.tasks.metrics import mean_and_interval

ways = {
    "fine-tuned": firth.FineTuning(epochs=4, lr=1e-3),
    "frozen": firth.Frozen(epochs=10),
}
seeds = (0, 1, 2)

with resources.as_file(resources.files("firth") / "demo_data") as folder:
    corpus = firth.Corpus.from_files(folder / "papers.valid.txt.gz", documents="line")
    recipe = override(
        firth.recipe("bert", size="tiny", vocab_size=1000),
        {"training.steps": 60, "training.batch_tokens": 2048, "data.valid": 0.1},
    )
    lm = firth.pretrain(recipe, corpus, "runs/example")
    task = firth.Classification(text="sentence", label="label", metric="macro_f1")
    train, dev, test = (task.read(folder / f"roles.{p}.tsv.gz") for p in ("train", "dev", "test"))

results = {}
for name, way in ways.items():
    scores = []
    for seed in seeds:
        model = firth.adapt(lm, task, train[:300], way, dev=dev[:100], seeds=(seed,))
        scores.append(model.evaluate(test[:300]).metrics["macro_f1"])
    results[name] = mean_and_interval(scores)
    mean, half = results[name]
    print(f"{name:<12} macro F1 {mean:.3f} ± {half:.3f} on test, {len(seeds)} seeds")
