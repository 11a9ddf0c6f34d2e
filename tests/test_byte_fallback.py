"""Vocabularies as Llama's: a text is one word, unknown characters are spelled by their bytes."""

import json
from dataclasses import replace

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, processors

import firth
from firth.errors import CheckpointError, ConfigError
from firth.interop.huggingface import load_model
from firth.models import GPT
from tests.reference import transformers
from tests.test_decoders import SHAPES, random_model

WORDS = ("▁hi", "▁hello", "User", ":", "▁User", "▁cat")


def spelling() -> firth.Tokenizer:
    """Words of `WORDS`, and the bytes of all else."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        for n in range(1, len(word)):
            merges.append((word[:n], word[n]))
        for part in (*word, *(word[:n] for n in range(2, len(word) + 1))):
            vocabulary.setdefault(part, len(vocabulary))
    library = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=list(dict.fromkeys(merges)),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return firth.Tokenizer(library.to_str(), {"bos_token": "<s>", "eos_token": "</s>"})


@pytest.fixture(scope="module")
def lm() -> firth.LanguageModel:
    tokenizer = spelling()
    torch.manual_seed(0)
    config = replace(
        SHAPES["llama, grouped"], vocab_size=tokenizer.vocabulary.size, max_length=64, dropout=0.0
    )
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return firth.LanguageModel(model.eval(), tokenizer, precision="float32")


@pytest.mark.parametrize(
    ("stop", "room", "expected"),
    [
        ((), 7, "😀 hello hello hello"),
        (("User:",), 7, "😀 hello hello hello"),  # it stands in the prompt alone
        ((), 2, "\ufffd\ufffd"),
        (("hello",), 7, "😀 "),
    ],
)
def test_bytes_behind_a_prompt_that_ends_with_bytes(lm, monkeypatch, stop, room, expected):
    """Two bytes of a character would spoil the one before them."""
    ids = {lm.tokenizer.token(i): i for i in range(lm.tokenizer.vocabulary.size)}
    emoji = [ids[f"<0x{byte:02X}>"] for byte in "😀".encode()]
    script = iter([*emoji, *[ids["▁hello"]] * 3])
    monkeypatch.setattr(
        "firth.inference.generation.choose", lambda *_: torch.tensor([next(script)])
    )
    found = lm.generate("User: hi 😀", max_tokens=room, stop=stop)
    assert found.continuation == expected
    assert found.text == "User: hi 😀" + expected


def test_pieces_are_what_is_written_behind_bytes(lm):
    spoiled = 0
    for seed in range(40):
        how = {"max_tokens": 12, "temperature": 1.0, "seed": seed}
        found = lm.generate("hello €", **how)
        assert "".join(lm.stream("hello €", **how)) == found.continuation
        assert "hello €" not in found.continuation
        spoiled += found.continuation.startswith("\ufffd")
    assert spoiled > 10


def test_white_space_before_the_first_word_is_read_and_scored(lm):
    plain, indented = lm.score(["hello cat", "    hello cat"])
    assert len(indented.tokens) == len(plain.tokens) + 4
    assert indented.total < plain.total
    assert lm.tokenizer.encode("\n\nhello cat").words.tolist()[:4] == [-1, 0, 0, 0]
    assert lm.tokenizer.encode("   ").words.tolist() == [-1] * 5
    vectors = lm.embed(["  hello cat"], unit="word")[0]
    assert vectors.units == ["hello", "cat"]


def test_a_prompt_may_be_a_list_of_words(lm):
    found = lm.generate([["hello", "cat"]], max_tokens=3)[0]
    assert found.prompt == "hello cat"
    assert found.continuation == lm.generate("hello cat", max_tokens=3).continuation


def test_a_tokenizer_without_an_opening_is_not_taken_for_blanks(papers, tmp_path):
    description = json.loads(firth.Tokenizer.train(papers, "bpe", 300).to_json())
    tokenizer = firth.Tokenizer(json.dumps(description | {"post_processor": None}))
    for name in ("bert", "hybrid"):
        chosen = firth.recipe(name, size="tiny").with_settings({"training.steps": 1})
        with pytest.raises(ConfigError, match="does not put <s> before a text"):
            firth.pretrain(
                chosen, firth.Corpus.from_texts(papers), tmp_path / name, tokenizer=tokenizer
            )


def test_a_llama_without_its_output_matrix_is_named(lm, tmp_path):
    model = random_model(SHAPES["llama"])
    firth.LanguageModel(model, lm.tokenizer).save(tmp_path)
    bare = transformers.AutoModel.from_pretrained(tmp_path)
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(CheckpointError, match=r"no lm_head.weight.*save the model as LlamaForC"):
        load_model(tmp_path / "bare")


def test_a_rate_of_null_is_the_default(tmp_path, lm):
    lm.save(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings |= {"attention_dropout": None, "pretraining_tp": None}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert load_model(tmp_path).model.config == lm.model.config
