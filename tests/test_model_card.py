"""The text of a model's card: metadata that the hub accepts, and scores that replace older ones."""

from dataclasses import replace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from unibert.model_card import EncoderFacts, LanguageCounts, Pretraining, Trimming, model_card, model_name, with_scores

ENCODER = EncoderFacts(
    architecture="modernbert",
    num_hidden_layers=3,
    hidden_size=1024,
    num_attention_heads=16,
    vocab_size=60_000,
    num_parameters=100_000_000,
    num_embedding_parameters=61_440_000,
    max_tokens=512,
    has_masked_lm_head=True,
    global_layers=[0],
    local_attention=128,
)
LANGUAGES = [LanguageCounts(code=code, documents=1_000, tokens=2_000_000) for code in ("als", "de", "simple")]
RUN = Pretraining(
    name="mine", languages=LANGUAGES, trainer="UniBERT 9", steps=1, tokens=131_072, masked_lm=True, max_lambda=0.02
)
TRIMMED = Trimming(
    name="small",
    languages=LANGUAGES,
    source="some/encoder",
    is_on_hub=True,
    source_vocab_size=250_002,
    source_num_parameters=278_000_000,
)


def scores(retrieval: float, *, untrained: bool = True) -> dict[str, Any]:
    def part(base: float) -> dict[str, Any]:
        layers = {str(layer): base + layer / 100 for layer in range(4)}
        return {
            "retrieval_mean": {layer: {"raw": value, "centred": value + 0.5} for layer, value in layers.items()},
            "probe": {
                layer: {"raw": {"mlp": {"mean": 0.9}}, "centred": {"mlp": {"mean": value / 2}}}
                for layer, value in layers.items()
            },
        }

    return {
        "num_layers": 4,
        "headline_layer": 2,
        "data": {"sets": {"aligned": 1_500}, "languages": ["de", "en"]},
        "chance": {"retrieval": 0.001, "probe": 0.5},
        "model": part(retrieval),
        "baseline": part(0.05) if untrained else None,
    }


def test_the_metadata_are_what_the_hub_reads():
    data = ModelCard(model_card(ENCODER, RUN)).data.to_dict()
    # Alemannic and Simple English have codes of their own as Wikipedias, which are not ISO 639.
    assert data["language"] == ["de", "en", "gsw"]
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "fill-mask")
    assert "sentence-transformers" in data["tags"]
    assert not {"license", "base_model"} & set(data)


def test_a_trimmed_model_names_its_original():
    card = ModelCard(model_card(replace(ENCODER, has_masked_lm_head=False), TRIMMED))
    assert (card.data.base_model, card.data.pipeline_tag, card.data.license) == (
        "some/encoder",
        "feature-extraction",
        None,
    )
    assert "with 60,000 of its 250,002 pieces" in card.text
    assert "The licence of [some/encoder](https://huggingface.co/some/encoder) applies to this model too" in card.text
    assert "fill-mask" not in card.text
    assert "No objective of the training" not in card.text


def test_the_objectives_of_a_run():
    def objectives(**settings: Any) -> list[str]:
        card = model_card(ENCODER, replace(RUN, **settings))
        return [
            line for line in card[card.index("## Training") : card.index("## Languages")].splitlines() if "- " in line
        ]

    assert [line.split(":")[0] for line in objectives()] == ["- masked language modelling", "- a language adversary"]
    assert objectives()[1].endswith("rises to 0.02")
    assert objectives(max_lambda=0.0)[1].endswith("no effect on the encoder (λ = 0)")
    losses = {"logits": 0.0, "relations": 1.0, "hidden": 0.5}
    assert objectives(masked_lm=False, max_lambda=None, teacher="big", teacher_losses=losses) == [
        "- distillation of `big`: its attention relations (weight 1), hidden states (weight 0.5)"
    ]


def test_the_licence_depends_on_text_and_models():
    for settings, end in (
        ({}, "the licences of the training text, which"),
        ({"teacher": "t"}, "the licences of the training text and of the teacher, which"),
        ({"initial_model": "m"}, "the licences of the training text and of the model that it started from, which"),
    ):
        assert end in model_card(ENCODER, replace(RUN, **settings))


def test_scores_of_the_last_layer_stand_before_the_use():
    card = with_scores(model_card(ENCODER, RUN), scores(0.20))
    assert "Scores of the last layer (3 of 0-3" in card
    assert "| retrieval raw     |       23.0 |       8.0 |    0.1 |" in card
    assert "| probe centred     |       11.5 |       4.0 |   50.0 |" in card
    assert "1,500 aligned lines in 2 languages" in card
    assert card.index("## Languages") < card.index("## Scores") < card.index("## Use")


def test_new_scores_replace_older_ones_and_nothing_else():
    plain = model_card(ENCODER, RUN).replace("tags:", "license: mit\ntags:").replace("## Licence", "## My licence")
    first = with_scores(plain, scores(0.20))
    second = with_scores(first, scores(0.30, untrained=False))
    assert second == with_scores(plain, scores(0.30, untrained=False))
    assert ("33.0" in second, "23.0" in second, "untrained" in second) == (True, False, False)
    before, after = second[: second.index("## Scores")], second[second.index("## Use") :]
    assert before + after == plain


def test_scores_of_other_layers_leave_the_card_alone():
    card, middle = model_card(ENCODER, RUN), scores(0.20)
    for part in ("retrieval_mean", "probe"):
        middle["model"][part] = {"2": middle["model"][part]["2"]}
    assert with_scores(card, middle) == card


@pytest.mark.parametrize("plain", ["", "# Mine\n", "# Mine\n\nText.\n\n\n"])
def test_a_card_without_the_section_on_use_gets_the_scores_at_its_end(plain):
    once = with_scores(plain, scores(0.20))
    assert once.startswith(plain.rstrip("\n"))
    assert once.rstrip().endswith("is subtracted.")
    assert with_scores(once, scores(0.20)) == once


def test_names_of_models_are_hub_ids_or_have_no_path():
    names = {"runs/teacher/model": "teacher", "/data/xlm/": "xlm", "../encoder": "encoder", "model": "model"}
    names |= {"intfloat/multilingual-e5-small": "intfloat/multilingual-e5-small"}
    assert {name: model_name(name) for name in names} == names
