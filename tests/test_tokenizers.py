import copy
import functools
import itertools
import json
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

import firth.text.tokenizers as tokenizers_module
from firth.errors import CheckpointError, ConfigError, DataError
from firth.text.tokenizer_training import _steady, sample_documents
from firth.text.tokenizers import Tokenizer
from firth.text.vocabulary_report import vocabulary_report
from firth.text.word_cache import WordCache, literal_backend
from tests.reference import transformers

KINDS = ("wordpiece", "bpe", "unigram", "word", "whitespace")
WHOLE_WORDS = ("word", "whitespace")
DOCUMENTS = [
    f"The {a} tide {b}s the old wall, isn't it?\nÜber {b} naïve Straße — {a}{b} 中文 {a}!"
    for a in ("high", "low", "spring", "neap", "red")
    for b in ("break", "wash", "turn", "flood", "carve")
] * 3


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    return {kind: Tokenizer.train(DOCUMENTS, kind, 400) for kind in KINDS}


@functools.cache
def backend(tokenizer_json: str) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tokenizer_json)


@pytest.fixture(params=KINDS)
def tokenizer(request, trained) -> Tokenizer:
    return trained[request.param]


LETTERS = "abehtÜß中文éñ.,'!-[]<>/ \n\t\u3000\u00a0\u200b\u0301\u0338"
TEXTS = st.text(st.one_of(st.sampled_from(LETTERS), st.characters(exclude_categories=["Cs"])))
TEXTS = st.lists(st.one_of(TEXTS, st.sampled_from(["tide", " the", "[MASK]", "<mask>"]))).map(
    "".join
)
WORDS = st.lists(TEXTS.map(lambda text: "".join(text.split())), max_size=8)


def test_special_tokens_come_first(trained):
    bert = {"pad": 0, "unknown": 1, "first": 2, "last": 3, "mask": 4}
    roberta = {"first": 0, "pad": 1, "last": 2, "unknown": 3, "mask": 4}
    for kind, roles in zip(KINDS, (bert, roberta, roberta, bert, bert), strict=True):
        vocabulary = trained[kind].vocabulary
        assert {role: getattr(vocabulary, role) for role in roles} == roles
        assert vocabulary.special == (0, 1, 2, 3, 4)
        assert vocabulary.size <= 400
        tokens = [trained[kind].token(index) for index in range(vocabulary.size)]
        assert len(set(tokens)) == vocabulary.size


def test_case_and_accents_are_kept_unless_told(trained):
    for kind in ("wordpiece", "bpe", "unigram"):
        kept = trained[kind]
        assert kept.decode(kept.encode("Über naïve Straße").ids) == "Über naïve Straße"
        folding = Tokenizer.train(DOCUMENTS, kind, 400, lowercase=True, strip_accents=True)
        folding = Tokenizer(folding.to_json())  # the options are in the file itself
        assert folding.decode(folding.encode("ÜBER NAÏVE").ids).strip() == "uber naive"
        assert np.array_equal(folding.encode("ÜBER").ids, folding.encode("uber").ids)


def test_words_are_whole_and_ordered_by_frequency(trained):
    word = trained["word"]
    assert word.encode("the tide, TIDE").tokens == ["[CLS]", "the", "tide", ",", "[UNK]", "[SEP]"]
    small = Tokenizer.train(["a b b c c c"], "word", 7, min_frequency=1)
    assert [small.token(5), small.token(6)] == ["c", "b"]


def test_wordpiece_spells_any_word_of_known_characters(trained):
    wordpiece = trained["wordpiece"]
    # "Ü" was seen only at the start of a word, "q" and "x" never.
    assert wordpiece.vocabulary.unknown not in wordpiece.encode("ieÜr").ids
    assert wordpiece.encode("tideq xyz 中").tokens.count("[UNK]") == 2
    assert wordpiece.encode("中文").tokens == ["[CLS]", "中", "文", "[SEP]"]


def test_rare_characters_get_no_entry():
    documents = ["common words " * 20 for _ in range(100)]
    tokenizer = Tokenizer.train([*documents, "☃"], "wordpiece", 100)
    assert tokenizer.encode("☃ words").tokens[1] == "[UNK]"
    often = Tokenizer.train([*documents, "☃ " * 40], "wordpiece", 100)
    assert often.encode("☃ words").tokens[1] == "☃"


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "word"])
def test_training_is_deterministic(kind, trained):
    assert Tokenizer.train(DOCUMENTS, kind, 400).content_hash == trained[kind].content_hash


def test_scores_of_unigram_leave_out_what_differs_from_run_to_run():
    special = [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["<mask>", 0.0]]
    learned = [["the", -2.0], ["a", -2.5], ["ta", -3.000000000000001], ["b", -4.1], ["c", -4.2]]
    another = [["the", -2.0], ["a", -2.5], ["ta", -2.999999999999999], ["c", -4.1], ["b", -4.2]]
    expected = [("the", -2.0), ("a", -2.5), ("ta", -3.0), ("b", -4.2), ("c", -4.2)]
    for pieces in (learned, another):
        assert _steady(special + pieces) == [*map(tuple, special), *expected]


@given(text=TEXTS)
def test_offsets_rebuild_the_text(trained, text):
    for tokenizer in trained.values():
        encoding = tokenizer.encode(text)
        inner = encoding.offsets[1:-1]
        assert encoding.offsets[[0, -1]].tolist() == [[0, 0], [0, 0]]
        assert np.all(np.diff(inner[:, 0]) >= 0)
        assert np.all(inner[:, 0] <= inner[:, 1])
        covered = set()
        for start, end in inner.tolist():
            covered.update(range(start, end))
        visible = {i for i, character in enumerate(text) if not character.isspace()}
        assert visible <= covered
        assert [tokenizer.token(i) for i in encoding.ids] == encoding.tokens


@pytest.mark.parametrize("line", ["Café é naïve", "Việt Nam là", "각국 사람"])
@pytest.mark.parametrize("kind", KINDS)
def test_offsets_of_decomposed_letters_hold_their_marks(kind, line):
    """The library gives the place of the base letter alone (NFD text, as macOS names files)."""
    tokenizer = Tokenizer.train([line] * 3, kind, 300, min_frequency=1)
    text = unicodedata.normalize("NFD", line)
    assert text != line
    encoding, composed = tokenizer.encode(text), tokenizer.encode(line)
    assert encoding.ids.tolist() == composed.ids.tolist()
    for found, expected in zip(encoding.offsets, composed.offsets, strict=True):
        assert unicodedata.normalize("NFC", text[slice(*found)]) == line[slice(*expected)]


@given(text=TEXTS)
def test_words_of_a_string_are_the_librarys(trained, text):
    for tokenizer in trained.values():
        encoding = tokenizer.encode(text)
        reference = backend(tokenizer.to_json()).encode(text)
        assert encoding.ids.tolist() == reference.ids
        assert [None if w < 0 else w for w in encoding.words.tolist()] == reference.word_ids


@given(words=WORDS)
def test_tokens_of_listed_words_lie_in_them(trained, words):
    text = " ".join(words)
    starts = [sum(len(word) + 1 for word in words[:i]) for i in range(len(words))]
    for kind, tokenizer in trained.items():
        encoding = tokenizer.encode(words)
        assert encoding.text == text
        if kind in WHOLE_WORDS:
            assert encoding.words[1:-1].tolist() == [i for i, word in enumerate(words) if word]
        else:
            assert np.array_equal(encoding.ids, tokenizer.encode(text).ids)
        assert encoding.words[[0, -1]].tolist() == [-1, -1]
        for (start, end), word in zip(
            encoding.offsets[1:-1].tolist(), encoding.words[1:-1].tolist(), strict=True
        ):
            visible = start + len(text[start:end]) - len(text[start:end].lstrip())
            if visible < end:
                assert starts[word] <= visible < starts[word] + len(words[word])
        seen = set(encoding.words.tolist())
        assert {i for i, word in enumerate(words) if word} <= seen


def test_listed_words_keep_their_place(trained):
    bpe = trained["bpe"].encode(["The", "tide", "", "turns", "[MASK]", "."])
    assert bpe.text == "The tide  turns [MASK] ."
    by_word = ["".join(np.array(bpe.tokens)[bpe.words == i]) for i in (0, 1, 3, 5)]
    assert by_word == ["The", "Ġtide", "Ġturns", "Ġ."]
    wordpiece = trained["wordpiece"].encode(["high-water", "[MASK]", "tide"])
    assert wordpiece.words[wordpiece.ids == 4].tolist() == [1]
    assert set(wordpiece.words[1:4].tolist()) == {0}
    assert trained["bpe"].encode([]).words.tolist() == [-1, -1]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_read_in_texts_and_literal_in_documents(trained, kind):
    tokenizer = trained[kind]
    mask = tokenizer.token(4)
    assert 4 in tokenizer.encode(f"the {mask} turns").ids
    assert 4 in tokenizer.encode(["the", mask]).ids
    literal = f"the {mask} turns x{mask}y <s></s>[CLS] [SEP]<pad>"
    (ids, opens_word), *others = tokenizer.encode_documents([literal])
    assert others == []
    assert not {0, 2, 4} & {*ids.tolist()}
    assert len(ids) == len(opens_word) > 5
    assert tokenizer.encode_documents([]) == []


def test_mask_takes_the_space_before_it(trained):
    bpe = trained["bpe"]
    before, after = (bpe.encode(text, special_tokens=False).tokens for text in ("The", " turns"))
    with_mask = bpe.encode("The <mask> turns", special_tokens=False)
    assert with_mask.tokens == [*before, "<mask>", *after]


def test_pairs_follow_the_template(trained):
    ids, segments = trained["wordpiece"].encode_pair("the tide", ["old", "wall"])
    tokens = [trained["wordpiece"].token(i) for i in ids]
    assert tokens == ["[CLS]", "the", "tide", "[SEP]", "old", "wall", "[SEP]"]
    assert segments.tolist() == [0, 0, 0, 0, 1, 1, 1]
    ids, segments = trained["bpe"].encode_pair("The", "The")
    (the,) = trained["bpe"].encode_ids(["The"], special_tokens=False)
    assert ids.tolist() == [0, *the, 2, 2, *the, 2]
    assert not segments.any()


def test_fast_paths_agree_with_encode(tokenizer):
    texts = ["The tide turns.", ["old", "wall"], "", "naïve [MASK] <mask>"]
    for special_tokens in (True, False):
        encodings = tokenizer.encode_batch(texts, special_tokens=special_tokens)
        ids = tokenizer.encode_ids(texts, special_tokens=special_tokens)
        for encoding, fast in zip(encodings, ids, strict=True):
            assert np.array_equal(encoding.ids, fast)
            assert fast.dtype == np.int64
    pairs = [("a tide", "b"), ("", ["old", "wall"])]
    for pair, (ids, segments) in zip(pairs, tokenizer.encode_pairs_ids(pairs), strict=True):
        assert ids.tolist() == tokenizer.encode_pair(*pair)[0].tolist()
        assert len(ids) == len(segments)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_byte_level_bpe_loses_nothing(trained, text):
    bpe = trained["bpe"]
    (ids, _) = bpe.encode_documents([text])[0]
    assert bpe.decode(ids) == unicodedata.normalize("NFC", text)
    assert bpe.vocabulary.unknown not in ids


def test_decode_shows_unknown_words_and_hides_other_special_tokens(trained):
    ids = trained["wordpiece"].encode("the xyz [MASK] tide").ids
    assert trained["wordpiece"].decode(ids) == "the [UNK] tide"
    shown = trained["wordpiece"].decode(ids, special_tokens=True)
    assert shown == "[CLS] the [UNK] [MASK] tide [SEP]"


def test_saved_tokenizer_loads_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path, model_max_length=128)
    text = "The naïve tide, [MASK] 中文 xyz"
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.content_hash == tokenizer.content_hash
        assert loaded.vocabulary == tokenizer.vocabulary
        assert np.array_equal(loaded.encode(text).ids, tokenizer.encode(text).ids)
    loaded.save(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert again == json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert again["model_max_length"] == 128


def test_transformers_gives_the_same_ids(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path, model_max_length=64)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 64
    for text in ("The naïve tide, [MASK] <mask> isn't it?", " 中文\n\nxyz  ☃", ""):
        assert theirs(text)["input_ids"] == tokenizer.encode(text).ids.tolist()
        ids, segments = tokenizer.encode_pair(text, "old wall")
        pair = theirs(text, "old wall")
        assert pair["input_ids"] == ids.tolist()
        assert pair.get("token_type_ids", [0] * len(ids)) == segments.tolist()
    special = (theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id)
    vocabulary = tokenizer.vocabulary
    assert special == (vocabulary.pad, vocabulary.unknown, vocabulary.first)
    assert (theirs.sep_token_id, theirs.mask_token_id) == (vocabulary.last, vocabulary.mask)
    tokenizer.save(tmp_path, segments=False)
    plain = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert sorted(plain("tide")) == ["attention_mask", "input_ids"]


def test_loads_what_transformers_saves(tmp_path):
    transformers = pytest.importorskip("transformers")
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "tide", "turn", "##s", "##é"]
    theirs = transformers.BertTokenizer(vocab={token: i for i, token in enumerate(vocab)})
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    for text in ("The tide\x00\x0bturns [MASK]", "turné xyz"):
        assert theirs(text)["input_ids"] == ours.encode(text).ids.tolist()
    assert ours.vocabulary.mask == 4


def test_padding_and_truncation_of_a_file_are_switched_off(trained, tmp_path):
    padded = tokenizers.Tokenizer.from_str(trained["wordpiece"].to_json())
    padded.enable_padding(length=16)
    padded.enable_truncation(4)
    padded.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    ids = loaded.encode_ids(["tide", "the old tide washes the old wall"])
    assert [len(i) for i in ids] == [
        len(i)
        for i in trained["wordpiece"].encode_ids(["tide", "the old tide washes the old wall"])
    ]
    assert len(ids[0]) == 3
    loaded.save(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["padding"] is None
    assert saved["truncation"] is None


def write_renamed(path: Path, trained: dict[str, Tokenizer], config: dict, name: str) -> None:
    text = trained["wordpiece"].to_json().replace("[MASK]", "[HOLE]")
    (path / "tokenizer.json").write_text(text)
    (path / name).write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("mask", ["[HOLE]", {"content": "[HOLE]", "lstrip": False}])
def test_special_tokens_may_have_any_name(trained, tmp_path, name, mask):
    write_renamed(tmp_path, trained, {"mask_token": mask, "cls_token": None}, name)
    vocabulary = Tokenizer.load(tmp_path).vocabulary
    assert (vocabulary.mask, vocabulary.first) == (4, 2)


def test_a_decoder_needs_no_mask(trained, tmp_path):
    """GPT-2's vocabulary has one special token, which opens and closes."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    library.pre_tokenizer = byte_level(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(["a small text"] * 3, trainer)
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    vocabulary = tokenizer.vocabulary
    assert (vocabulary.first, vocabulary.last, vocabulary.mask, vocabulary.pad) == (0, 0, -1, -1)
    assert tokenizer.decode(tokenizer.encode("a small text").ids) == "a small text"
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").vocabulary == vocabulary
    # Pairs have a delimiter between them, which no template of the file puts there.
    ends = [tokenizer.encode_pair(*pair)[0].tolist() for pair in (("a", " small"), ("a small", ""))]
    assert ends[0] != ends[1]
    ids, segments = tokenizer.encode_pair("a small", "text")
    assert ids.tolist() == [*tokenizer.encode("a small").ids, 0, *tokenizer.encode("text").ids]
    assert segments.sum() == len(tokenizer.encode("text").ids)
    assert [
        len(ids) for ids, _ in tokenizer.encode_pairs_ids([("a", "a small text")], max_length=4)
    ] == [4]
    assert tokenizer.encode_pair("", "")[0].tolist() == [0]


@pytest.mark.parametrize("cutter", [None, "metaspace"])
def test_words_are_cut_at_white_space_where_the_tokenizer_cuts_none(cutter):
    """As Llama's tokenizers, for which a text is one word."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=False))
    metaspace = tokenizers.pre_tokenizers.Metaspace
    library.pre_tokenizer = metaspace(prepend_scheme="always")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    library.train_from_iterator(["the ship was late"] * 3, trainer)
    library.pre_tokenizer = metaspace(prepend_scheme="always", split=False)
    if cutter is None:
        library.normalizer = tokenizers.normalizers.Sequence(
            [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
        )
        library.pre_tokenizer = None
    tokenizer = Tokenizer(library.to_str())
    text = "the  ship was\nlate"
    encoding = tokenizer.encode(text)
    owners = {w: "" for w in sorted(set(encoding.words.tolist()) - {-1})}
    for (begin, end), word in zip(encoding.offsets, encoding.words, strict=True):
        if word >= 0:
            owners[int(word)] += text[begin:end]
    assert [word.strip() for word in owners.values()] == ["the", "ship", "was", "late"]


def test_a_bare_file_is_saved_with_what_transformers_needs(trained, tmp_path):
    transformers = pytest.importorskip("transformers")
    Tokenizer(trained["bpe"].to_json()).save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.mask_token, theirs.cls_token, theirs.pad_token_id) == ("<mask>", "<s>", 1)
    assert sorted(theirs("tide")) == ["attention_mask", "input_ids"]


def test_missing_files_and_tokens_are_named(trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file"):
        Tokenizer.load(tmp_path)
    text = trained["wordpiece"].to_json().replace("[SEP]", "[END]")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"found for last \(usual names: last: \[SEP\]"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_training_says_what_is_wrong():
    with pytest.raises(ConfigError, match="did you mean 'wordpiece'"):
        Tokenizer.train(DOCUMENTS, "wordpieces")
    with pytest.raises(ConfigError, match="needs at least 261"):
        Tokenizer.train(DOCUMENTS, "bpe", 260)
    with pytest.raises(DataError, match="no text"):
        Tokenizer.train(["", "  \n"], "unigram")
    with pytest.raises(DataError, match="document 2: character 4"):
        Tokenizer.train(["fine", "half\ud800"], "bpe", 300)


def test_text_that_is_no_unicode_is_refused(tokenizer):
    for call in (tokenizer.encode, lambda text: tokenizer.encode_ids([text])):
        with pytest.raises(DataError, match="surrogate"):
            call("half\udc00")
    with pytest.raises(ConfigError, match="no token has the id 100000"):
        tokenizer.token(100_000)


def test_a_sample_is_spread_evenly_and_bounded():
    documents = [f"{i:04}" for i in range(1000)]
    assert sample_documents(documents, 4000) == documents
    sample = list(map(int, sample_documents(iter(documents), 400)))
    assert 50 < len(sample) <= 100
    assert len({*np.diff(sample).tolist()}) == 1
    assert sample[-1] > 980


def test_unigram_learns_from_text_without_spaces():
    documents = ["".join(np.random.default_rng(i).permutation([*"潮汐海岸浪"])) for i in range(50)]
    tokenizer = Tokenizer.train([*documents, "潮汐海岸浪潮汐"], "unigram", 40, min_frequency=2)
    assert tokenizer.vocabulary.unknown not in tokenizer.encode("浪海汐").ids


def test_vocabulary_report_counts(trained):
    wordpiece = Tokenizer.train(DOCUMENTS, "wordpiece", 400, lowercase=True, strip_accents=True)
    text = "The tide, Übertide e\u0301 xyz"
    report = vocabulary_report(wordpiece, [text, text])
    tokens = wordpiece.encode(text, special_tokens=False)
    assert report.num_words == 10
    assert report.num_characters == 2 * 20
    assert report.tokens_per_word == len(tokens.ids) / 5
    assert report.num_unknown == 2
    assert report.num_units == 12
    pieces = np.bincount(tokens.words)
    assert report.num_cut == 2 * (pieces > 1).sum() > 0
    assert report.lost == {"T": 2, "Ü": 2, "é": 2}
    assert report.lost_share == 6 / 40
    assert report.num_used == len({*tokens.ids.tolist()} - {1})
    assert report.num_entries == wordpiece.vocabulary.size - 5
    assert dict(report.rows())["most often lost"] == "T 2, Ü 2, é 2"
    kept = vocabulary_report(trained["wordpiece"], [text])
    assert kept.lost == {}
    with pytest.raises(DataError, match="no words"):
        vocabulary_report(wordpiece, [" "])


@pytest.mark.parametrize("kind", WHOLE_WORDS)
def test_unseen_words_get_ids_of_their_own(kind):
    tokenizer = Tokenizer.train(DOCUMENTS, kind, 400)
    unknown, size = tokenizer.vocabulary.unknown, tokenizer.vocabulary.size
    text = ["The", "U.S.", "tide", "zebra", "", "U.S."]
    assert tokenizer.encode(text).ids[[2, 4, 5]].tolist() == [unknown] * 3
    words = tokenizer.open()
    encoding = tokenizer.encode(text)
    assert encoding.ids[[2, 4, 5]].tolist() == [size, size + 1, size]
    assert encoding.tokens[1:-1] == ["The", "U.S.", "tide", "zebra", "U.S."]
    assert encoding.words.tolist() == [-1, 0, 1, 2, 3, 5, -1]
    assert [words.word(i) for i in (size, size + 1)] == ["U.S.", "zebra"]
    assert np.array_equal(tokenizer.encode_ids([text])[0], encoding.ids)
    assert tokenizer.encode("a zebra").ids[-2] == size + 1
    assert tokenizer.decode(encoding.ids) == "The U.S. tide zebra U.S."
    assert tokenizer.open() is words
    assert copy.deepcopy(words) is words


@pytest.mark.parametrize("length", range(3, 12))
def test_pairs_of_whole_words_are_cut_as_other_pairs(length):
    """The library's way, which the kinds that cut words into pieces take."""
    ours, plain = (Tokenizer.train(DOCUMENTS, "whitespace", 400) for _ in range(2))
    plain._reader = None
    for pair in [("The high tide turned", "tide"), ("The", "the old wall tide"), ("The low", "")]:
        for one, other in zip(
            ours.encode_pairs_ids([pair], max_length=length)[0],
            plain.encode_pairs_ids([pair], max_length=length)[0],
            strict=True,
        ):
            assert np.array_equal(one, other)


def test_a_vocabulary_of_pieces_cannot_be_opened(trained):
    with pytest.raises(ConfigError, match="kind word or whitespace"):
        trained["bpe"].open()


def test_names_of_special_tokens_in_the_text_leave_no_holes():
    texts = ["a [SEP] b [UNK]", "[UNK] [SEP] a"] * 5
    tokenizer = Tokenizer.train(texts, "whitespace", 100, min_frequency=1)
    size = tokenizer.vocabulary.size
    assert [tokenizer.token(i) for i in range(size)][5:] == ["a", "b"]
    ((ids, _),) = tokenizer.encode_documents(["a [UNK] [SEP] b"])
    assert ids.tolist() == [5, 1, 1, 6]


def test_pieces_that_spell_leave_room_for_the_special_tokens():
    syllables = [chr(0xAC00 + i) for i in range(700)]
    tokenizer = Tokenizer.train([" ".join(syllables)] * 3, "wordpiece", 1000)
    assert tokenizer.vocabulary.size <= 1000


def test_chinese_words_of_a_list_are_one_word():
    tokenizer = Tokenizer.train(["the tide turns"] * 3, "word", 100)
    tokenizer.open()
    ids = tokenizer.encode(["北京", "New York"], special_tokens=False).ids
    assert [tokenizer.token(int(i)) for i in ids] == ["北京", "New York"]


def test_added_words_are_read_in_documents_and_old_files_load(tmp_path):
    tokenizer = Tokenizer.train(DOCUMENTS, "whitespace", 400)
    description = json.loads(tokenizer.to_json())
    word = {**description["added_tokens"][0], "id": tokenizer.vocabulary.size, "content": "<ent>"}
    description["added_tokens"].append({**word, "special": False})
    literal = literal_backend(json.dumps(description))
    assert word["id"] in literal.encode("a <ent> b", add_special_tokens=False).ids
    pieces = json.loads(Tokenizer.train(DOCUMENTS, "bpe", 400).to_json())
    del pieces["model"]["type"]
    for part in (pieces["pre_tokenizer"], *pieces["pre_tokenizer"].get("pretokenizers", ())):
        part.pop("use_regex", None)
    assert len(WordCache(json.dumps(pieces)).encode(["The tide"]).ids) > 1


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("wordpiece", {"do_lower_case": True}),
        ("wordpiece", {"strip_accents": True}),
        ("wordpiece", {"tokenize_chinese_chars": False}),
        ("bpe", {"add_prefix_space": True}),
    ],
)
def test_settings_beside_the_file_count_as_in_transformers(kind, settings, tmp_path, caplog):
    """A directory whose two files disagree: `transformers` follows tokenizer_config.json."""
    texts = ["The Ship élan 漢字 sails.", "Ünder the TIDE", "x"]
    plain = Tokenizer.train([*texts, "the ship under"] * 3, kind, 400)
    name = {"wordpiece": "BertTokenizer", "bpe": "GPT2Tokenizer"}[kind]
    plain.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": name}
    if kind == "wordpiece":
        config |= {"do_lower_case": False, "strip_accents": False} | settings
    path.write_text(json.dumps(config | settings))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    changed = 0
    for text in texts:
        ids = ours.encode(text, special_tokens=False).ids.tolist()
        assert ids == theirs(text, add_special_tokens=False).input_ids
        changed += ids != plain.encode(text, special_tokens=False).ids.tolist()
    assert changed
    assert "tokenizer_config.json says otherwise" in caplog.text


def unigram_with_special_pieces() -> Tokenizer:
    """As XLM-R's: its special tokens are pieces, with the best scores of all."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [*((name, 0.0) for name in special), *((f"▁{w}", -3.0) for w in ("the", "dog"))]
    pieces += [(character, -6.0) for character in "abcdefghijklmnopqrstuvwxyz▁<>/"]
    library = tokenizers.Tokenizer(tokenizers.models.Unigram([*pieces, ("<mask>", 0.0)], 3))
    cutters = tokenizers.pre_tokenizers
    library.pre_tokenizer = cutters.Sequence([cutters.WhitespaceSplit(), cutters.Metaspace()])
    library.decoder = tokenizers.decoders.Metaspace()
    mask = tokenizers.AddedToken("<mask>", lstrip=True)
    library.add_special_tokens([*special, mask, "<extra>"])
    library.add_tokens(["zebra"])  # behind a special token that is no piece
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return Tokenizer(library.to_str())


def test_special_tokens_that_are_pieces_are_text_in_documents():
    tokenizer = unigram_with_special_pieces()
    document = "the dog <s>ran</s> <mask> <unk> zebra <pad>"
    (ids, opens_word), *_ = tokenizer.encode_documents([document])
    tokens = [tokenizer.token(i) for i in ids]
    assert not {*ids.tolist()} & {*tokenizer.vocabulary.special}
    assert "".join(tokens).replace("▁", "") == document.replace(" ", "")
    assert tokens[:6] == ["▁the", "▁dog", "▁", "<", "s", ">"]
    assert "zebra" in tokens
    assert opens_word.sum() == 7
    marked = tokenizer.encode("the <mask> dog").tokens
    assert marked == ["<s>", "▁the", "<mask>", "▁dog", "</s>"]


def test_words_of_documents_open_where_words_of_texts_do():
    """Also where the tokenizer cuts none, as Llama's."""
    description = json.loads(unigram_with_special_pieces().to_json())
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}
    description["pre_tokenizer"] = {**metaspace, "split": False}
    description["decoder"] = {**metaspace, "split": True}
    tokenizer = Tokenizer(json.dumps(description))
    text = "the dog  ran"
    ids, opens_word = tokenizer.encode_documents([text])[0]
    assert [tokenizer.token(i) for i in ids] == ["▁the", "▁dog", "▁", "▁", "r", "a", "n"]
    assert opens_word.tolist() == [True, True, False, True, False, False, False]
    words = tokenizer.encode(text, special_tokens=False).words
    assert opens_word.tolist() == (np.diff(words, prepend=-1) != 0).tolist()


def test_cutting_in_one_thread_leaves_the_others_alone(trained):
    tokenizer, text = trained["wordpiece"], "the old wall " * 20
    whole = len(tokenizer.encode(text).ids)
    end, lengths, cut = threading.Event(), set(), set()

    def shorten() -> None:
        while not end.is_set():
            cut.update(map(len, tokenizer.encode_ids([text] * 4, max_length=8)))

    thread = threading.Thread(target=shorten)
    thread.start()
    try:
        for _ in range(300):
            lengths.add(len(tokenizer.encode(text).ids))
    finally:
        end.set()
        thread.join()
    assert lengths == {whole}
    assert cut == {8}


@pytest.mark.parametrize("length", [3, 5, 8, 13])
def test_cut_texts_are_those_of_the_library(tokenizer, length):
    if tokenizer._reader is not None:
        pytest.skip("cut by firth itself")
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    library.enable_truncation(length, strategy="longest_first")
    texts = ["The high tide turns <mask> the [MASK] wall", "Über", ""]
    found = [ids.tolist() for ids in tokenizer.encode_ids(texts, max_length=length)]
    assert found == [library.encode(text).ids for text in texts]
    if length > 3:
        pairs = list(itertools.product(texts, texts))
        found = [ids.tolist() for ids, _ in tokenizer.encode_pairs_ids(pairs, max_length=length)]
        assert found == [library.encode(*pair).ids for pair in pairs]


def test_a_length_without_room_for_special_tokens_is_refused(trained):
    for kind, pair in zip(KINDS, (3, 4, 4, 3, 3), strict=True):
        tokenizer = trained[kind]
        assert [len(ids) for ids in tokenizer.encode_ids(["the tide"], max_length=2)] == [2]
        with pytest.raises(ConfigError, match=r"max_length is 1, .* alone are 2; give at least 2"):
            tokenizer.encode_ids(["the tide"], max_length=1)
        with pytest.raises(ConfigError, match=f"alone are {pair}; give"):
            tokenizer.encode_pairs_ids([("the", "tide")], max_length=pair - 1)
        cut = tokenizer.encode_ids(["the tide turns"], special_tokens=False, max_length=1)
        assert list(map(len, cut)) == [1]


def test_words_and_documents_with_half_a_character_are_refused(trained):
    for kind in KINDS:
        with pytest.raises(DataError, match=r"document 2: character 1 is '\\ud800'"):
            trained[kind].encode_documents(["the tide", "a\ud800"])
        with pytest.raises(DataError, match="surrogate"):
            trained[kind].encode(["the", "a\ud800"])


def test_a_word_of_which_folding_leaves_nothing_has_no_token():
    tokenizer = Tokenizer.train(DOCUMENTS, "word", 100, strip_accents=True)
    for encoding in (tokenizer.encode(["\u0301", "the"]), tokenizer.encode("\u0301 the")):
        assert encoding.tokens == ["[CLS]", "the", "[SEP]"]
    assert tokenizer.encode(["\u0301", "the"]).words.tolist() == [-1, 1, -1]


def test_long_words_of_scripts_without_spaces_are_spelled(caplog):
    clause = "กินข้าวแล้ว" * 20  # 220 characters
    tokenizer = Tokenizer.train([f"{clause} {clause}"] * 20, "wordpiece", 100)
    assert "[UNK]" not in tokenizer.encode(clause).tokens
    assert json.loads(tokenizer.to_json())["model"]["max_input_chars_per_word"] == 1000
    report = vocabulary_report(tokenizer, [clause])
    assert (report.num_unknown, report.num_unknown_characters) == (0, 0)
    assert caplog.messages == []


def test_the_report_says_how_many_characters_are_unknown(trained, caplog):
    report = vocabulary_report(trained["wordpiece"], ["The tide xyzxyzxyz turns"])
    assert (report.num_unknown, report.num_unknown_characters) == (1, 9)
    assert report.unknown_character_share == 9 / 21
    assert dict(report.rows())["characters in unknown tokens"] == "42.857%"
    assert caplog.messages[0].startswith("42.9% of the characters are in words that the vocabulary")
    caplog.clear()
    vocabulary_report(trained["word"], ["The tide xyzxyzxyz turns"])  # as it is meant to be
    assert caplog.messages == []


def test_the_report_of_a_vocabulary_without_unknown_token(trained):
    library = tokenizers.Tokenizer(tokenizers.models.BPE({"<|endoftext|>": 0, "a": 1, "c": 2}, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.add_special_tokens(["<|endoftext|>"])
    report = vocabulary_report(Tokenizer(library.to_str()), ["ac ccc"])
    assert (report.num_tokens, report.num_unknown, report.unknown_share) == (5, 0, 0.0)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_decomposed_text_has_the_vocabulary_of_composed_text(kind):
    """Korean in jamo has few letters, and thousands of syllables once it is composed."""
    words = [chr(0xAC00 + 8 * i) + chr(0xAC04 + 8 * i) for i in range(1000)]
    texts = [" ".join(words)] * 3
    both = [
        Tokenizer.train([unicodedata.normalize(form, text) for text in texts], kind, 1000)
        for form in ("NFC", "NFD")
    ]
    assert both[0].vocabulary.size <= 1000
    assert both[0].content_hash == both[1].content_hash


def test_a_save_that_is_cut_short_leaves_no_tokenizer_without_its_settings(tmp_path, monkeypatch):
    """Where a run finds a tokenizer.json it takes it for whole."""
    tokenizer = Tokenizer.train(["the tide turns"] * 3, "bpe", 300)

    def stop(path, text, original=tokenizers_module.write_text):
        original(path, text)
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizers_module, "write_text", stop)
    with pytest.raises(KeyboardInterrupt):
        tokenizer.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer_config.json"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"\xff{}"),
        ("special_tokens_map.json", b"[1]"),
        ("tokenizer_config.json", b"{"),
    ],
)
def test_damaged_files_of_a_tokenizer_are_named(name, content, tmp_path):
    Tokenizer.train(["the tide turns"] * 3, "bpe", 300).save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        Tokenizer.load(tmp_path)
