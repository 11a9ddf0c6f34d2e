"""Recipes of encoders."""

from dataclasses import replace

from firth.models import BertConfig
from firth.models.bert import modern
from firth.objectives import MaskedLM, SentencePairs, SpanBoundary
from firth.recipes.settings import Recipe
from firth.recipes.shapes import gated_size, shape_of
from firth.recipes.text_settings import DataSettings, TokenizerSettings
from firth.training import AdamW, Muon, Schedule, Training


def bert(size: str = "mini", vocab_size: int = 8192) -> Recipe:
    """BERT (Devlin et al. 2019), section 3 and appendix A.2, at the sizes of Turc et al. 2019.

    Departures, for small corpora and machines: masked LM alone, without next-sentence prediction
    (Liu et al. 2019, section 4.2); sequences of 128 tokens throughout; a cased vocabulary of 8,192
    trained on the corpus; batches of 8,192 tokens; peak learning rate 1e-3 up to 4x256 and 5e-4
    above, beta2 0.98, warm-up 6 %; no dropout, since a short run sees its text only a few times
    (Geiping and Goldstein 2023, section 4.3; set `model.dropout` to 0.1 for many epochs).
    """
    model = _config(size, vocab_size)
    lr = 1e-3 if model.hidden_size <= 256 else 5e-4
    return Recipe(
        name="bert",
        model=model,
        tokenizer=TokenizerSettings(vocab_size=vocab_size),
        training=Training(steps=20_000, optimizer=AdamW(lr=lr), schedule=Schedule(warmup=0.06)),
    )


def bert_nsp(size: str = "mini", vocab_size: int = 8192) -> Recipe:
    """BERT with next-sentence prediction (Devlin et al. 2019, section 3.1, task 2).

    The recipe `bert` with pairs of segments, a pooler and a pair head; it is written as
    `BertForPreTraining`. `--objective.kind order` has ALBERT's sentence order instead (Lan et al.
    2020, section 3.1).

    Departures: those of `bert`, except that there is a next sentence; those of `SentencePairs`. A
    pair fills the whole length, where the published program makes one in ten shorter.
    """
    plain = bert(size, vocab_size)
    return replace(
        plain,
        name="bert-nsp",
        model=replace(_config(size, vocab_size), pair_head=True),
        objective=SentencePairs(kind="next"),
    )


def roberta(size: str = "mini", vocab_size: int = 8192) -> Recipe:
    """RoBERTa (Liu et al. 2019), sections 3.1 and 4 and table 9, at BERT's sizes.

    Byte-level BPE (4.4), dynamic masking (4.1), full sentences without next-sentence prediction
    (4.2): sequences go on across the borders of documents, with a separator between them. Adam with
    beta2 0.98 and epsilon 1e-6, linear decay.

    Departures, for small corpora and machines: sequences of 128 tokens instead of 512; batches of
    8,192 tokens instead of 8,000 sequences; a vocabulary of 8,192 instead of 50,265; peak learning
    rate 1e-3 up to 4x256 and 6e-4 above (the paper's of base; large has 4e-4 there); warm-up 6 %
    instead of 4.8 %; gradients clipped at 1 instead of not at all; no dropout. One segment row, as
    in `transformers`, which adds the same to every token.
    """
    model = replace(_config(size, vocab_size), num_segments=1, position_offset=2, norm_eps=1e-5)
    lr = 1e-3 if model.hidden_size <= 256 else 6e-4
    return Recipe(
        name="roberta",
        model=model,
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=vocab_size),
        data=DataSettings(packing="full"),
        training=Training(steps=20_000, optimizer=AdamW(lr=lr), schedule=Schedule(warmup=0.06)),
    )


def spanbert(size: str = "mini", vocab_size: int = 8192) -> Recipe:
    """SpanBERT (Joshi et al. 2020), sections 3 and 4.2, at BERT's sizes.

    Spans of whole words are masked and predicted twice, by the masked LM and from the tokens beside
    the span; single segments of one document; a cased vocabulary; epsilon 1e-8. Places in a span up
    to 15 have an embedding, as in the published command. `transformers` loads the model as BERT,
    without the boundary head, which serves pre-training alone.

    Departures, for small corpora and machines: sequences of 128 tokens instead of 512; a vocabulary
    of 8,192 instead of 28,996; batches of 8,192 tokens instead of 256 sequences; rates, beta2 and
    warm-up of the recipe `bert`; no dropout; those of `MaskedLM` and `SpanBoundary`.
    """
    plain = bert(size, vocab_size)
    optimizer = plain.training.optimizer
    assert isinstance(optimizer, AdamW)
    return replace(
        plain,
        name="spanbert",
        model=replace(_config(size, vocab_size), boundary_places=15),
        objective=SpanBoundary(),
        training=replace(plain.training, optimizer=replace(optimizer, eps=1e-8)),
    )


def modern_bert(size: str = "mini", vocab_size: int = 8192) -> Recipe:
    """ModernBERT (Warner et al. 2024), section 2.1, at BERT's sizes.

    Pre-norm, rotary positions, GeGLU, no biases, alternating local (128 tokens) and global
    attention; masking rate 30 % and a trapezoidal schedule as in its section 2.2.

    Departures: intermediate size 2/3 of BERT's, so that the gated layer has as many weights;
    Muon with AdamW for the rest instead of StableAdamW; the masking rate falls from 30 % to 15 %,
    and the learning rate in a line instead of by 1 - sqrt; global layers have from the start the
    rotary base (160,000) that the published model has since its extension to 8,192 tokens (10,000
    before), and nothing is dropped (a tenth behind attention). For small corpora: WordPiece of
    8,192 instead of BPE of 50,368, sequences of 128 tokens instead of 1,024, batches of 8,192
    tokens.
    """
    plain = _config(size, vocab_size)
    gated = gated_size(plain.intermediate_size)
    model = modern(replace(plain, intermediate_size=gated, max_length=1024))
    return Recipe(
        name="modern-bert",
        model=model,
        tokenizer=TokenizerSettings(vocab_size=vocab_size),
        objective=MaskedLM(rate=0.3, final_rate=0.15),
        training=Training(
            steps=20_000, optimizer=Muon(), schedule=Schedule(shape="trapezoid", warmup=0.02)
        ),
    )


def _config(size: str, vocab_size: int) -> BertConfig:
    return BertConfig(vocab_size=vocab_size, **shape_of(size), dropout=0.0)
