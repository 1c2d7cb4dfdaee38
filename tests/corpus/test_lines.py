"""Lines of tokenised documents: every kind of tokenizer tells which tokens each line has."""

import pytest
from tokenizers import Tokenizer

from tests.corpus.fast_tokenizers import KINDS, train
from tests.corpus.inputs import sentences
from unibert.corpus.text_tokenizer import TextTokenizer
from unibert.corpus.tokenizer import OwnTokenizer, load_tokenizer, train_tokenizer

LINES = sentences(60)
TEXTS = ["\n".join(LINES[:3]), LINES[3], "\n".join([LINES[4], "漢字 €", "(", LINES[5]]), "漢\n字\nab"]


def checked_lines(tokenizer, decode):
    """Return the decoded lines of TEXTS; the tokens must be those without lines, each in one line."""
    plain = tokenizer.encode_batch(TEXTS)
    lines = []
    for text, expected, (tokens, counts) in zip(TEXTS, plain, tokenizer.encode_lines(TEXTS), strict=True):
        assert tokens.tolist() == expected.tolist()
        assert len(counts) == text.count("\n") + 1
        assert counts.sum() == len(tokens)
        ends = counts.cumsum().tolist()
        starts = [0, *ends[:-1]]
        lines.append([decode(tokens[start:end].tolist()) for start, end in zip(starts, ends, strict=True)])
    return lines


@pytest.mark.parametrize("kind", KINDS)
def test_fast_tokenizers(kind, tmp_path):
    tokenizer = TextTokenizer.load(train(kind, LINES, 600, tmp_path))
    decoder = Tokenizer.from_str(tokenizer.content)
    lines = checked_lines(tokenizer, lambda tokens: decoder.decode(tokens).replace(" ", ""))
    for text, found in zip(TEXTS[:2], lines, strict=False):
        assert [line.strip("\n") for line in found] == [line.replace(" ", "") for line in text.split("\n")]
    assert lines[2][0].strip("\n") == LINES[4].replace(" ", "")
    assert lines[2][3] == LINES[5].replace(" ", "")
    assert lines[3][2] == "ab"


def test_own_tokenizers(tmp_path):
    path = tmp_path / "sentencepiece.model"
    path.write_bytes(train_tokenizer(LINES, vocab_size=500))
    assert checked_lines(OwnTokenizer(path), load_tokenizer(path).Decode) == [text.split("\n") for text in TEXTS]


def test_a_text_that_is_no_token(tmp_path):
    tokenizer = TextTokenizer.load(train("wordpiece", LINES, 600, tmp_path))
    [(tokens, counts)] = tokenizer.encode_lines(["\n"])
    assert tokens.tolist() == []
    assert counts.tolist() == [0, 0]
