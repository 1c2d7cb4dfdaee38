"""The stages through which a build takes a document, and what the reasons mean for which they drop it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stage:
    """One stage of a build."""

    name: str
    reasons: Mapping[str, str]
    """What each reason says of a document."""


_STAGES = (
    Stage(
        "reading",
        {
            "malformed_page": "a page without title, id or revision",
            "redirect": "leads to another page",
            "not_an_article": "outside the article namespace: talk, templates, categories, files",
            "not_wikitext": "a page of another content model, such as JSON",
            "too_long_page": "more wikitext than max_page_characters",
            "excluded": "named by the file of exclude",
        },
    ),
    Stage("your function", {"document_filter": "dropped by the function of document_filter"}),
    Stage(
        "filters",
        {
            "too_short": "fewer letters than filters.min_letters",
            "few_letters": "mostly digits and signs",
            "repeated_lines": "lines that are repeated",
            "foreign_script": "mostly in scripts that the language does not use",
        },
    ),
    Stage("language", {"wrong_language": "in another language, says the identifier"}),
    Stage("evaluation sets", {"contaminated": "shares text with an evaluation set"}),
    Stage(
        "copies and stubs",
        {
            "duplicate": "equal to an earlier document",
            "stub": "mostly phrases of a template that many documents have",
            "near_duplicate": "nearly equal to an earlier document",
            "near_duplicate_in_another_language": "nearly equal to a document of another language",
        },
    ),
)


def stages_of(reasons: Iterable[str]) -> list[Stage]:
    """Return the stages that have some of these reasons, in order, with these alone; a last one for unknown ones."""
    present = set(reasons)
    stages = [
        Stage(stage.name, {reason: meaning for reason, meaning in stage.reasons.items() if reason in present})
        for stage in _STAGES
    ]
    known = {reason for stage in _STAGES for reason in stage.reasons}
    stages.append(Stage("other rules", dict.fromkeys(sorted(present - known), "")))
    return [stage for stage in stages if stage.reasons]


def num_dropped(stage: Stage, entry: Mapping[str, Any]) -> int:
    """Return how many documents of an entry of report.json a stage drops."""
    return sum(entry["dropped"].get(reason, 0) for reason in stage.reasons)
