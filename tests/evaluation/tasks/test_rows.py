"""Rows of tokens: which token stands for which word or answer, and what windows leave of long texts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from unibert.errors import UserError
from unibert.evaluation.tasks.files import TaskFile
from unibert.evaluation.tasks.framing import Framing
from unibert.evaluation.tasks.ner import NamedEntities, TaggedSentence
from unibert.evaluation.tasks.nli import Inference, InferencePairs
from unibert.evaluation.tasks.qa import Question, QuestionAnswering
from unibert.evaluation.tasks.task import IGNORED, Examples, Row

FILE = TaskFile("somewhere", "set", "de", "test")
LETTERS = "abcdé中３ﬁ"


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are single characters, as SentencePiece or as bytes mark the spaces."""
    alphabet = {"metaspace": "▁", "bytes": ""}[kind] + LETTERS + "0123456789fi."
    if kind == "metaspace":
        vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *dict.fromkeys(alphabet)]
        vocabulary += [f"▁{letter}" for letter in "abc"]
        made = Tokenizer(models.Unigram([(piece, -float(number)) for number, piece in enumerate(vocabulary)], unk_id=3))
        made.normalizer = normalizers.NFKC()
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
    else:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters, "Ġa", "bc"]
        made = Tokenizer(
            models.BPE(
                {piece: number for number, piece in enumerate(pieces)}, [("Ġ", "a"), ("b", "c")], unk_token="<unk>"
            )
        )
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
    )


TOKENIZERS = {kind: tokenizer(kind) for kind in ("metaspace", "bytes")}
WORDS = st.lists(st.text(LETTERS, min_size=1, max_size=6), min_size=1, max_size=12)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(words=WORDS, max_length=st.integers(5, 40))
@settings(deadline=None)
def test_every_word_is_predicted_once_at_its_first_token_whatever_the_windows(kind, words, max_length):
    tags = [["O", "B-PER", "I-PER"][len(word) % 3] for word in words]
    framing = Framing(TOKENIZERS[kind], max_length)
    task = NamedEntities()
    labels = ["O", "B-PER", "I-PER"]
    rows = task.rows(Examples(FILE, [TaggedSentence(words, tags)], 0), labels, framing).rows
    placed = [(word, row.ids[token], row.targets[token]) for row in rows for token, word in row.places]
    assert [word for word, *_ in placed] == list(range(len(words)))
    [whole] = framing.encode([" ".join(words)])
    starts = [sum(len(word) + 1 for word in words[:index]) for index in range(len(words))]
    for word, token_id, target in placed:
        assert labels[target] == tags[word]
        # The first token that covers the word's first character.
        covering = [i for i, (start, end) in zip(whole.ids, whole.offsets, strict=True) if start <= starts[word] < end]
        assert token_id == covering[0]
    assert all(len(row.ids) <= max_length for row in rows)
    assert sum(target != IGNORED for row in rows for target in row.targets) == len(words)
    # Right outputs give the tags back.
    parts = []
    for row in rows:
        outputs = torch.zeros(len(row.ids), 3)
        for token, target in enumerate(row.targets):
            outputs[token, target if target != IGNORED else 0] = 1
        parts.append(task.read_off(outputs, row))
    assert task.prediction(TaggedSentence(words, tags), parts, labels)["predicted"] == tags


def test_words_without_a_token_are_no_entity():
    made = tokenizer("metaspace")
    made.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("é", "")])
    rows = NamedEntities().rows(
        Examples(FILE, [TaggedSentence(["a", "é", "b"], ["B-PER", "B-PER", "O"])], 0), ["O", "B-PER"], Framing(made, 32)
    )
    [row] = rows.rows
    assert [word for _, word in row.places] == [0, 2]
    [line] = [
        NamedEntities().prediction(
            TaggedSentence(["a", "é", "b"], ["B-PER", "B-PER", "O"]), [[(0, 1), (2, 0)]], ["O", "B-PER"]
        )
    ]
    assert line["predicted"] == ["B-PER", "O", "O"]


def test_special_tokens_that_a_text_spells_out_are_text():
    framing = Framing(TOKENIZERS["metaspace"], 64)
    [row] = NamedEntities().rows(Examples(FILE, [TaggedSentence(["<mask>"], ["O"])], 0), ["O"], framing).rows
    assert TOKENIZERS["metaspace"].mask_token_id not in row.ids


def test_an_entity_type_that_training_lacks_is_refused():
    with pytest.raises(UserError, match=r"has the entity type LOC, which the training data lack"):
        NamedEntities().rows(
            Examples(FILE, [TaggedSentence(["a"], ["B-LOC"])], 0), ["O", "B-PER"], Framing(TOKENIZERS["bytes"], 32)
        )


def test_pairs_are_cut_and_counted():
    framing = Framing(TOKENIZERS["metaspace"], 14)
    examples = [Inference("a b", "b a", "neutral"), Inference("a " * 30, "b", "entailment")]
    rows = InferencePairs().rows(Examples(FILE, examples, 0), InferencePairs().labels([]), framing)
    assert rows.truncated == 1
    assert [len(row.ids) for row in rows.rows] == [12, 14]
    assert [row.targets for row in rows.rows] == [[2], [1]]
    assert TOKENIZERS["metaspace"].decode(rows.rows[1].ids[-4:]) == "</s> b</s>"


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(words=st.lists(st.text(LETTERS, min_size=1, max_size=6), min_size=4, max_size=40), data=st.data())
@settings(deadline=None)
def test_answers_are_found_in_a_window_and_read_off_in_every_script(kind, words, data):
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(first + 2, len(words) - 1)))
    context = " ".join(words)
    start = sum(len(word) + 1 for word in words[:first])
    answer = " ".join(words[first : last + 1])
    question = Question("1", "a", context, [answer], [start])
    task, framing = QuestionAnswering(), Framing(TOKENIZERS[kind], data.draw(st.sampled_from([120, 300])))
    rows = task.rows(Examples(FILE, [question], 0), ["start", "end"], framing).rows
    # Every token of the paragraph is in a window.
    [whole] = framing.encode([context])
    assert {end for row in rows for place in row.places if place for end in [place[1]]} >= {
        end for begin, end in whole.offsets if not context[begin:end].isspace()
    }
    holding = [row for row in rows if row.targets != [0, 0]]
    assert holding
    for row in holding:
        outputs = torch.zeros(len(row.ids), 2)
        outputs[row.targets[0], 0] = outputs[row.targets[1], 1] = 5.0
        score, begin, end = task.read_off(outputs, row)
        if row.targets[1] - row.targets[0] < 30:
            assert score == 10.0
            assert context[begin:end] == answer


def test_the_best_span_is_the_best_of_all_spans():
    """Against a search over all pairs, on random scores."""
    generator = torch.Generator().manual_seed(0)
    task = QuestionAnswering()
    for length in (1, 5, 50):
        places = [None, *((number, number + 1) for number in range(length)), None]
        outputs = torch.randn(length + 2, 2, generator=generator)
        pairs = [(i, j) for i in range(1, length + 1) for j in range(i, min(i + 30, length + 1))]
        best = max(pairs, key=lambda pair: float(outputs[pair[0], 0] + outputs[pair[1], 1]))
        score, start, end = task.read_off(outputs, Row(0, [0] * (length + 2), [], [], places))
        assert (start, end) == (places[best[0]][0], places[best[1]][1])
        assert score == float(outputs[best[0], 0] + outputs[best[1], 1])


def test_the_best_window_gives_the_answer():
    question = Question("7", "q", "the old house", ["old"], [4])
    parts = [(1.0, 0, 3), (2.5, 4, 7), (float("-inf"), 0, 0)]
    line = QuestionAnswering().prediction(question, parts, ["start", "end"])
    assert line == {"id": "7", "answers": ["old"], "predicted": "old"}


def test_long_questions_are_cut_and_counted():
    framing = Framing(TOKENIZERS["metaspace"], 40)
    rows = QuestionAnswering().rows(
        Examples(FILE, [Question("1", "a b c " * 20, "a b", ["b"], [2])], 0), ["start", "end"], framing
    )
    assert rows.truncated == 1
    [row] = rows.rows
    assert row.targets != [0, 0]
    assert len(row.ids) <= 40


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False
        name_or_path = "slow-model"

    with pytest.raises(UserError, match=r"slow-model: fine-tuning needs the places of tokens"):
        Framing(Slow(), 8)
