"""Drive the training loop by hand: `firth.training.steps` yields after each step. A few seconds.

python examples/own_loop.py

Nothing is hidden behind it: no callbacks, no trainer. Between two steps do as you like: measure,
log, stop, change the weights.
"""

from importlib import resources

import torch

import firth
from firth.models import SIZES, Bert, BertConfig
from firth.objectives import MaskedLM
from firth.text.batches import ObjectiveBatches, PackedSequences
from firth.text.shards import unigram_entropy, write_shards
from firth.training import AdamW, Schedule, State, Training, mean_loss, steps

with resources.as_file(resources.files("firth") / "demo_data") as folder:
    corpus = firth.Corpus.from_files(folder / "papers.valid.txt.gz", documents="line")
    tokenizer = firth.Tokenizer.train(corpus, "wordpiece", vocab_size=1000)
    shards = write_shards(corpus, tokenizer, "runs/own-loop/data")

total = 30
objective = MaskedLM(rate=0.3, final_rate=0.15)
training = Training(batch_tokens=1024, optimizer=AdamW(lr=2e-3), schedule=Schedule(warmup=0.1))
packed = PackedSequences(
    shards, tokenizer.vocabulary, max_length=64, batch_tokens=training.batch_tokens, seed=0
)
batches = ObjectiveBatches(packed, objective, total_steps=total)

torch.manual_seed(0)
model = Bert(BertConfig(vocab_size=tokenizer.vocabulary.size, **SIZES["tiny"]), pooler=False)
state = State.begin(model, training)

# The same batches before and after: a batch depends on its number and on nothing else.
before = mean_loss(model, objective, batches, 2, training)
for step in steps(state, objective, batches, training, total_steps=total):
    if step.step % 10 == 0:
        speed = step.num_tokens / step.seconds
        print(f"step {step.step}  loss {step.loss:.3f}  {speed:,.0f} tokens/s")
after = mean_loss(model, objective, batches, 2, training)
unigram = unigram_entropy(shards.token_counts)
print(f"loss {before:.3f} before, {after:.3f} after; unigram {unigram:.3f} nats")

firth.LanguageModel(model.eval(), tokenizer).save("runs/own-loop", overwrite=True)
print([guess.token for guess in firth.load("runs/own-loop").fill("We [MASK] a model.")])
