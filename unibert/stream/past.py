"""What the stream of a branch takes over from its parent: the lanes where they stand, or the count of tokens alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unibert.stream.config import StreamConfig
from unibert.stream.plan import Mixture, PlanPast, mixture_of


def continued(
    lanes: Mapping[str, Any], config: StreamConfig, languages: Sequence[str], run_tokens: int, past: PlanPast | None
) -> PlanPast:
    """Return the past of a stream whose lanes go on where those of its parent stand.

    The shards of all windows that a lane has opened are those that the parent drew. Later draws follow the branch's own
    mixture. If its shares and caps are the parent's, they are the draws that the parent would make.

    Args:
        lanes: states of the parent's lanes.
        config, languages, run_tokens: the parent's.
        past: what the parent itself took over, if it is a branch.
    """
    past = PlanPast() if past is None else past
    states = [state for key, state in lanes.items() if key != "fingerprint"]
    windows = max(state["window"] + bool(state["packs"]) for state in states)
    mixture = mixture_of(config, languages, run_tokens)
    end = windows * config.window_shards * config.lanes
    return PlanPast(first_token=past.first_token, mixtures=[*past.mixtures, (end, mixture)])


def fresh_lanes(num_lanes: int) -> dict[str, Any]:
    """Return the states of lanes that have not read anything."""
    return {str(lane): {"window": 0, "packs": []} for lane in range(num_lanes)}


def past_from_json(content: Mapping[str, Any]) -> PlanPast:
    """Return the past of which ``dataclasses.asdict`` made ``content``."""
    mixtures = [(end, Mixture(**mixture)) for end, mixture in content["mixtures"]]
    return PlanPast(first_token=content["first_token"], mixtures=mixtures)
