"""How ``unibert bench scaling`` predicts steps on several ranks, from figures that are made up."""

import pytest
import torch

from unibert.bench.scaling.cases import all_cases
from unibert.bench.scaling.prediction import fitted_link, flattening_rate, predict, traffic_of_case
from unibert.bench.scaling.results import format_scaling_results
from unibert.planning.step_time import Link

SINGLES = {
    "zero0": {"forward": 0.7, "backward": 0.5, "optimizer": 0.04},
    "zero1": {"forward": 0.7, "backward": 0.6, "optimizer": 0.09},
    "zero2": {"forward": 0.7, "backward": 0.65, "optimizer": 0.09},
    "zero3": {"forward": 0.75, "backward": 0.8, "optimizer": 0.1},
}
LINKS = {
    "all_reduce": Link(bytes_per_second=1e9, latency=1e-3),
    "all_gather": Link(bytes_per_second=2e9, latency=2e-3),
    "reduce_scatter": Link(bytes_per_second=4e9, latency=3e-3),
}
CASES = {case.name: case for case in all_cases(ranks=2, micro_batches=4)}
SIZES, MODULES = [59_950_000, 50_000], 20


def predicted(name: str) -> dict[str, float]:
    case = CASES[name]
    traffic = traffic_of_case(case, torch.device("cpu"), sizes=SIZES, modules=MODULES)
    return vars(predict(case, SINGLES, traffic, LINKS, flattening=5e-10))


def test_a_link_is_found_in_its_messages():
    link = LINKS["all_reduce"]
    sizes = [4**power for power in range(6, 15)]
    # Around a ring of two, an all-reduce carries as much as the tensor has.
    rows = [
        {"operation": "all_reduce", "bytes": size, "seconds": link.latency + (size - sizes[0]) / link.bytes_per_second}
        for size in sizes
    ]
    other = [{"operation": "all_gather", "bytes": size, "seconds": 9.0} for size in sizes]
    fitted = fitted_link(rows + other, "all_reduce", 2)
    assert fitted.latency == link.latency
    # The smallest message has bytes too, 4 KiB beside 4 MiB.
    assert fitted.bytes_per_second == pytest.approx(link.bytes_per_second, rel=1e-3)


def test_copies_of_gradients_are_measured_on_large_tensors():
    sizes = [4**power for power in range(6, 15)]
    rows = [{"operation": "flatten", "bytes": size, "seconds": 1e-3 + 5e-10 * size} for size in sizes]
    other = [{"operation": "all_gather", "bytes": size, "seconds": 9.0} for size in sizes]
    # A millisecond is an eighth of 16 MiB's time and a 33rd of 64 MiB's, between which the median lies.
    assert flattening_rate(rows + other) == pytest.approx(5e-10, rel=0.2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("2 ranks, zero0", {"passes": 1.2, "copies": 0.12, "update": 0.04, "exchange": 0.241}),
        # 60 million fp32 gradients in two buckets, and half of as many weights in one message.
        ("2 ranks, zero1", {"passes": 1.2, "copies": 0.15, "update": 0.02, "exchange": 0.242 + 0.062}),
        ("2 ranks, zero1, 4 micro-batches", {"passes": 4.8, "copies": 0.15, "update": 0.02, "exchange": 0.304}),
        ("2 ranks, zero2, 4 micro-batches", {"passes": 4.8, "copies": 0.65, "update": 0.02, "exchange": 1.03}),
        ("2 ranks, zero1, buckets of 5M", {"passes": 1.2, "copies": 0.15, "update": 0.02, "exchange": 0.252 + 0.062}),
        ("2 ranks, zero3", {"passes": 1.2, "copies": 0.41, "update": 0.02, "exchange": 0.036 + 0.1}),
        # Of the weights, all but 50,000 are gathered four times, by 80 messages.
        (
            "2 ranks, zero3, 4 micro-batches",
            {"passes": 4.8, "copies": 1.46, "update": 0.02, "exchange": 0.144 + 0.39985},
        ),
    ],
)
def test_a_step_is_that_of_single_ranks_and_what_they_send(name, expected):
    assert predicted(name) == pytest.approx(expected)


def test_tables_compare_predicted_with_measured():
    row = {"status": "ran", "micro_batches": 1, "copies": 1, "peak_bytes": 2**31}
    row |= {"seconds_per_step_min": 1.0, "seconds_per_step_max": 2.0}
    together = {
        **row,
        "name": "2 ranks, zero0",
        "seconds_per_step": 1.5,
        "tokens_per_second": 1800.0,
        "communication": {"all_reduce": {"calls": 1.0, "bytes": 2.4e8, "seconds": 0.3}},
        "predicted": {**predicted("2 ranks, zero0"), "bytes": {"all_reduce": 2.4e8}},
    }
    alone = {**row, "name": "1 rank, zero0", "seconds_per_step": 1.2, "tokens_per_second": 1000.0}
    failed = {"name": "2 ranks, zero1", "status": "failed", "why": "rank 1 ended with -9"}
    text = format_scaling_results({"config": {"ranks": 2}, "rows": [alone, together, failed]})
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert "2 ranks, zero0 1,500 1,000 2,000 1,601 +7% 1,200 120 40 241 2.00" in lines
    assert "2 ranks, zero0: all_reduce 1 240.0 240.0 300.0" in lines
    assert "weak scaling, zero0: 1.80 times as fast on 2 ranks (90%)" in lines
    assert "2 ranks, zero1: failed: rank 1 ended with -9" in lines
