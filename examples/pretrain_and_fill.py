"""Pre-train a tiny BERT on a few papers, look into it, and fill blanks. A few seconds.

python examples/pretrain_and_fill.py

For something of use, take your own text, `size="mini"` and a budget of minutes.
"""

from importlib import resources

import firth

data = resources.files("firth") / "demo_data"
with resources.as_file(data) as folder:
    corpus = firth.Corpus.from_files(folder / "papers.valid.txt.gz", documents="line")
    recipe = firth.recipe("bert", size="tiny", vocab_size=1000).with_settings(
        {"training.steps": 30, "training.batch_tokens": 1024, "data.valid": 0.1}
    )
    lm = firth.pretrain(recipe, corpus, "runs/example")  # run it twice: it is done already

for guess in lm.fill("We train the [MASK] on a corpus.", top_k=3):
    print(f"{guess.probability:.3f}  {guess.text}")

good, bad = lm.score(["We train the model on a corpus.", "Corpus the on we a train model."])
print(f"perplexity: {good.perplexity:.1f} in order, {bad.perplexity:.1f} shuffled")

words = lm.embed(["The model is trained on a corpus."], unit="word")[0]
print(f"{len(words.units)} words, a vector of {words.vectors.shape[1]} for each: {words.units}")
