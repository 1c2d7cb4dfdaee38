"""The time of a step: what ranks send each other by ZeRO stage, and what of it can hide behind computation."""

import pytest
import torch

from unibert.planning.step_time import Link, Traffic, mean_step_time, step_time, traffic_of_step
from unibert.training.engine import ds_config_path, read_ds_config

LINK = Link(bytes_per_second=1e9, latency=1e-3)
SIZES, MODULES, ITEMSIZE = [99_920_000, 20_000_000, 80_000], 40, 2
PARAMETERS = sum(SIZES)
SIZE = PARAMETERS * ITEMSIZE


def traffic(name: str, micro_batches: int = 1, **changes: object) -> dict[str, Traffic]:
    config = read_ds_config(ds_config_path(name), torch.device("cpu"))
    config["zero_optimization"] |= changes
    parts = traffic_of_step(config, sizes=SIZES, modules=MODULES, itemsize=ITEMSIZE, micro_batches=micro_batches)
    return {part.purpose: part for part in parts}


def hidden(name: str, *, computing: float, micro_batches: int = 1, **changes: object) -> float:
    config = read_ds_config(ds_config_path(name), torch.device("cpu"))
    config["zero_optimization"] |= changes
    return step_time(
        config,
        list(traffic(name, micro_batches, **changes).values()),
        computing=computing,
        micro_batches=micro_batches,
        seconds_of=lambda part: part.seconds(2, LINK),
    ).hidden


@pytest.mark.parametrize(
    ("operation", "passes"),
    # Around a ring of four, each rank sends three quarters of the tensor, and twice so to reduce it to all.
    [("all_reduce", 2), ("all_gather", 1), ("reduce_scatter", 1)],
)
def test_a_ring_carries_all_but_a_ranks_own_share(operation, passes):
    part = Traffic(purpose="gradients", operation=operation, messages=5, num_bytes=4e9)
    assert part.seconds(4, LINK) == pytest.approx(passes * 3.0 + 5e-3)
    assert part.seconds(1, LINK) == 0


def test_traffic_by_stage():
    """As the table of docs/ds_configs.md: 2, 3, 3 and 2 times the weights on very many ranks, for one micro-batch."""
    many = Link(bytes_per_second=1.0, latency=0.0)
    carried = {stage: sum(part.seconds(10**9, many) for part in traffic(f"zero{stage}").values()) for stage in range(4)}
    assert carried == pytest.approx({0: 2 * SIZE, 1: 3 * SIZE, 2: 3 * SIZE, 3: 2 * SIZE})
    # 120 million elements are three buckets of 50 million, and one of DeepSpeed's default size under stage 0.
    assert [traffic(f"zero{stage}")["gradients"].messages for stage in range(4)] == [1, 3, 3, 3]
    assert traffic("zero0", reduce_bucket_size=1_000_000)["gradients"].messages == 1
    assert traffic("zero3")["weights"].messages == MODULES


def test_micro_batches_send_gradients_again_under_stages_2_and_3():
    for stage, times in {0: 1, 1: 1, 2: 4, 3: 4}.items():
        once, four = (traffic(f"zero{stage}", micro_batches) for micro_batches in (1, 4))
        assert four["gradients"].num_bytes == times * once["gradients"].num_bytes
        assert four["gradients"].messages == times * once["gradients"].messages
        if stage in (1, 2):
            assert four["weights"] == once["weights"]
    # Stage 3 gathers the weights again too, but those of less than 100,000 elements.
    once, four = (traffic("zero3", micro_batches)["weights"] for micro_batches in (1, 4))
    assert four.num_bytes == 4 * once.num_bytes - 3 * ITEMSIZE * 80_000
    assert four.messages == 4 * once.messages
    assert traffic("zero3", 4, stage3_param_persistence_threshold=0)["weights"].num_bytes == 4 * SIZE


def test_all_but_the_last_bucket_can_hide_behind_the_backward_pass():
    reducing = SIZE / 1e9 + 3e-3
    # Long enough a backward pass hides two of three buckets; a short one as much as it lasts, two thirds of computing.
    assert hidden("zero1", computing=10.0) == pytest.approx(2 / 3 * reducing)
    assert hidden("zero1", computing=0.03) == pytest.approx(0.02)
    # Under stage 1 only that of the last micro-batch, under stage 2 that of each.
    assert hidden("zero1", computing=0.03, micro_batches=3) == pytest.approx(0.02 / 3)
    assert hidden("zero2", computing=0.03, micro_batches=3) == pytest.approx(0.02)
    assert hidden("zero1", computing=10.0, overlap_comm=False) == 0
    assert hidden("zero1", computing=10.0, reduce_bucket_size=PARAMETERS) == 0
    assert hidden("zero0", computing=10.0) == 0


def test_stage_3_also_hides_the_gather_of_weights():
    reducing, gathering = SIZE / 2e9 + 3e-3, SIZE / 2e9 + MODULES * 1e-3
    expected = 2 / 3 * reducing + (1 - 1 / MODULES) * gathering
    assert hidden("zero3", computing=10.0) == pytest.approx(expected)
    # A third of computing is the forward pass.
    assert hidden("zero3", computing=0.03) == pytest.approx(0.01 + 0.02)


@pytest.mark.parametrize(
    ("stage", "settings", "hides"),
    # DeepSpeed overlaps under stage 3 unless told not to, and under stage 0 never.
    [(0, {"overlap_comm": True}, False), (1, {}, False), (2, {}, False), (3, {}, True)],
)
def test_what_deepspeed_overlaps_by_itself(stage, settings, hides):
    config = {"zero_optimization": {"stage": stage, **settings}}
    part = Traffic(purpose="gradients", operation="all_reduce", messages=4, num_bytes=1e9)
    time = step_time(config, [part], computing=10.0, micro_batches=1, seconds_of=lambda part: part.seconds(2, LINK))
    assert (time.hidden > 0) is hides


def test_the_mean_counts_steps():
    config = read_ds_config(ds_config_path("zero0"), torch.device("cpu"))
    short, long = (
        step_time(config, [], computing=seconds, micro_batches=1, seconds_of=lambda part: 0.0) for seconds in (1, 4)
    )
    assert mean_step_time([short, long], [200, 100]).longest == pytest.approx(2)
