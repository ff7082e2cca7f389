"""Where the time of steps went, and what is said to have bounded a run."""

import json
import time

import pytest
import torch

import xfer
from tests.xfer.command import status
from xfer.bound import ROWS, bound_text, rank_rows, rank_times, slow_rank
from xfer.timing import PARTS, Clock, Laps, Spans, append, cut, read_timing


def log(folder, rank=0, ranks=1, rows=8, since=0, images=40, workers=2, cpus=8, node=None, slow=(), **seconds):
    """Rows of ten steps each. `seconds`: of a step; `slow`: rows in which computing takes twice as long."""
    exchange, reading, decoding = (seconds.pop(name, 0.0) for name in ("exchange", "reading", "decoding"))
    for row in range(rows):
        parts = {part: seconds.get(part, 0.0) for part in PARTS} | {"backward": seconds.get("backward", 0.0) + exchange}
        parts["forward"] *= 2 if row in slow else 1
        mean = parts | {"step": sum(parts.values())}
        place = {"since": since, "rank": rank, "ranks": ranks, "node": node or f"h{rank}", "workers": workers}
        work = {"exchange": 10 * exchange, "reading": 10 * reading, "decoding": 10 * decoding}
        count = {"step": since + 10 * (row + 1), "steps": 10, "images": images, "replaced": 0, "memory_mb": 500.0}
        append(folder, {**count, "mean": mean, "max": mean, **place, **work, "cpus": cpus})


def told(folder) -> str:
    return bound_text(rank_times(folder))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"forward": 0.2, "data": 0.02}, "Bound by compute: 9 % of a step waits for images. "),
        (
            {"forward": 0.1, "data": 0.05, "workers": 1, "reading": 0.02, "decoding": 0.13},
            "Bound by data: 33 % of a step waits for images. Images of a step take 150 ms to read and decode, the rest "
            "of it 100 ms: data.workers=2 would keep up, now 1",
        ),
        (
            {"forward": 0.1, "data": 0.15, "workers": 0, "decoding": 0.15},
            "Bound by data: 60 % of a step waits for images. Images of a step take 150 ms to read and decode, the rest "
            "of it 100 ms: data.workers=2 would keep up, now 0",
        ),
        (
            {"forward": 0.1, "data": 0.2, "workers": 1, "decoding": 0.3, "cpus": 3},
            "to keep up takes data.workers=3 on each of 1 rank of node h0, which has 3 CPUs. Build shards of smaller",
        ),
        (
            {"forward": 0.1, "data": 0.2, "workers": 2, "reading": 0.4, "decoding": 0.1},
            "most is reading: keep the shards",
        ),
        (
            {"forward": 0.1, "data": 0.4, "workers": 4, "decoding": 0.2},
            "Its loader processes work for 10 % of the time only: shards come too slowly.",
        ),
        (
            {"forward": 0.1, "exchange": 0.05, "data": 0.02},
            "Bound by communication: 29 % of a step exchanges gradients and weights.",
        ),
        ({"forward": 0.1, "exchange": 0.05, "data": 0.06, "workers": 1, "decoding": 0.3}, "Bound by data: 29 %"),
        ({"forward": 0.1, "data": 0.5, "rows": ROWS}, "Too few rows of losses"),  # the first row is of warming up
    ],
)
def test_the_rule_says_what_bounded_a_run_and_what_to_change(tmp_path, row, said):
    log(tmp_path, **row)
    assert said in told(tmp_path)


def test_the_slow_rank_is_named_with_its_node_and_its_cause(tmp_path):
    for rank in range(4):
        slow = rank == 2
        log(tmp_path, rank, 4, forward=0.3 if slow else 0.2, exchange=0.01 if slow else 0.11, data=0.01)
    assert told(tmp_path) == (
        "Bound by rank 2 on node h2: 310 ms of its own a step against 210 ms of the others, who wait for it; most of "
        "it is computing: look for other programs on that node, a slower device, heat"
    )
    table = rank_rows(rank_times(tmp_path))
    assert [row[:2] for row in table[1:]] == [[str(rank), f"h{rank}"] for rank in range(4)]
    assert table[3][3:7] == ["320 ms", "10 ms", "300 ms", "10 ms"]


def test_a_rank_that_waits_for_images_is_the_slow_one_too(tmp_path):
    log(tmp_path, 0, 2, forward=0.1, exchange=0.2)
    log(tmp_path, 1, 2, forward=0.1, exchange=0.01, data=0.19)
    assert "Bound by rank 1 on node h1: 290 ms" in told(tmp_path)
    assert told(tmp_path).endswith("waiting for images: look at that node's storage, network and other programs")


@pytest.mark.parametrize(
    "other",
    [
        {"forward": 0.24, "exchange": 0.01},  # below the limit
        {"forward": 0.21, "exchange": 0.04, "slow": (2, 4, 5)},  # now and then
        {"forward": 0.3, "exchange": 0.01, "images": 60},  # a larger share
        {"forward": 0.2, "exchange": 0.2},  # waits, and is not waited for
    ],
)
def test_ranks_that_differ_for_no_long_time_or_by_their_share_are_not_called_slow(tmp_path, other):
    log(tmp_path, 0, 2, forward=0.2, exchange=0.05)
    log(tmp_path, 1, 2, **other)
    assert slow_rank(rank_times(tmp_path)) is None
    assert "Bound by rank" not in told(tmp_path)


def test_waiting_for_another_rank_is_not_taken_for_communication(tmp_path):
    log(tmp_path, 0, 2, forward=0.2, exchange=0.06)
    log(tmp_path, 1, 2, forward=0.24, exchange=0.02)
    assert told(tmp_path).startswith("Bound by compute: 0 % of a step waits for images, 8 % for other ranks.")


def test_only_the_newest_start_counts_and_rows_behind_its_checkpoint_are_taken_out(tmp_path):
    for rank in (0, 1):
        log(tmp_path, rank, 2, forward=0.1, data=0.2)
    cut(tmp_path, 40)
    assert {row["step"] for row in read_timing(tmp_path)} == {10, 20, 30, 40}
    log(tmp_path, 0, 1, since=40, forward=0.1)
    assert [one.rank for one in rank_times(tmp_path)] == [0]
    assert told(tmp_path).startswith("Bound by compute")
    cut(tmp_path, 5)
    assert list(tmp_path.iterdir()) == []


def test_the_parts_of_a_step_add_up_to_it_and_what_is_between_steps_is_in_none():
    laps = Laps(torch.device("cpu"))
    for pause in (0.0, 0.02):
        laps.start()
        time.sleep(0.01)
        laps.lap("data")
        time.sleep(pause)
        for part in ("forward", "backward", "forward"):
            laps.lap(part)
        laps.end(6)
        time.sleep(0.2)  # an evaluation
    row = laps.row()
    assert (row["steps"], row["images"]) == (2, 12)
    assert 0.01 <= row["mean"]["forward"] + 1e-6 < row["max"]["forward"]
    assert row["mean"]["step"] == pytest.approx(sum(row["mean"][part] for part in PARTS), abs=1e-5)
    assert row["max"]["data"] < 0.2
    spans = Spans(Clock(torch.device("cpu")))
    for _ in range(2):
        spans.measured(time.sleep)(0.01)
    assert 0.02 <= spans.take() < 0.2
    assert spans.take() == 0


def test_a_run_keeps_its_timing_and_its_report_says_what_bounded_it(recipe_values):
    recipe_values["model"] = {"branches": {"only": {"backbone": "resnet10", "size": 16}}, "fusion": {"width": 16}}
    run = xfer.fit(recipe_values, {"train.steps": 8, "data.batch_size": 6, "data.image_size": 200}, quiet=True)
    rows = [json.loads(line) for line in (run.folder / "timing-0.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert all(row["mean"]["data"] >= 0.9 * (row["reading"] + row["decoding"]) > 0 for row in rows)
    assert all(row["images"] == 6 and row["exchange"] == 0 for row in rows)
    assert status("report", str(run.folder)) == 0
    section = (run.folder / "report.html").read_text().split("<h2>Throughput</h2>")[1].split("</section>")[0]
    assert "<p>Bound by " in section
    assert "<svg" in section
