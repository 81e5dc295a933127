"""The counts of a run: exact whatever happens in whatever order, and a rate of the last minute."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ti2v_dist.tally import FEWEST, Rate, Tally


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_is_of_the_last_minute_and_not_of_the_start() -> None:
    clock = Clock()
    rate = Rate(clock)
    clock.now += 300  # a model is loaded
    assert rate.per_second == 0.0
    for _ in range(4):
        rate.add(2)
        assert rate.per_second == 0.0, "not known yet"
        clock.now += 1
    for _ in range(200):
        rate.add(2)
        clock.now += 1
    assert rate.per_second == pytest.approx(2, rel=0.05)
    for _ in range(70):
        rate.add(10)
        clock.now += 1
    assert rate.per_second == pytest.approx(10, rel=0.05)
    clock.now += 600
    assert rate.per_second < 1.0, "it has stalled"


def test_a_model_of_minutes_a_frame_has_a_rate() -> None:
    clock = Clock()
    rate = Rate(clock)
    for _ in range(10):
        rate.add(4)
        clock.now += 240
    assert rate.per_second == pytest.approx(4 / 240, rel=0.34)
    assert len(rate._made) <= FEWEST + 1


def test_frames_that_come_at_once_make_no_rate_and_take_no_room() -> None:
    clock = Clock()
    rate = Rate(clock)
    for _ in range(100_000):
        rate.add(1)
        clock.now += 0.001
    assert rate.per_second == pytest.approx(1000, rel=0.05)
    assert len(rate._made) < 110


IDS = st.sampled_from("abc")
FRAME = st.integers(0, 6)
STEPS = st.one_of(
    st.tuples(st.just("want"), IDS, st.integers(2, 6)),
    st.tuples(st.just("settle"), IDS, FRAME),
    st.tuples(st.just("finish"), IDS),
    st.tuples(st.just("fail"), IDS),
    st.tuples(st.just("recall"), st.dictionaries(IDS, FRAME), st.sets(IDS)),
)


@given(st.lists(STEPS, max_size=30))
def test_done_and_left_are_the_total_at_all_times(steps: list[tuple]) -> None:
    tally, wanted, ended = Tally(), dict[str, int](), dict[str, str]()
    settled = dict[str, int | None]()
    for name, *arguments in steps:
        if name in ("settle", "finish") and arguments[0] not in wanted:
            continue
        getattr(tally, name)(*arguments)
        if name == "want":
            video_id = arguments[0]
            if ended.pop(video_id, "") == "finished":
                settled[video_id] = wanted[video_id]
            wanted[video_id] = arguments[1] - 1
        elif name == "settle":
            settled[arguments[0]] = min(arguments[1], wanted[arguments[0]])
        elif name in ("finish", "fail"):
            wanted.setdefault(arguments[0], 0)
            ended[arguments[0]] = {"finish": "finished", "fail": "failed"}[name]
        else:
            frames, failed = arguments
            for video_id in failed:
                if ended.get(video_id) == "finished" and settled.get(video_id) is None:
                    ended[video_id] = "failed"
            for video_id, frame in frames.items():
                if video_id in wanted and settled.get(video_id) is None and ended.get(video_id) != "finished":
                    settled[video_id] = min(frame, wanted[video_id])
        made = {i: wanted[i] if ended.get(i) == "finished" else settled.get(i) or 0 for i in wanted}
        assert tally.done == sum(made.values())
        assert tally.left == sum(max(0, wanted[i] - made[i]) for i in wanted if i not in ended)
        assert tally.total == tally.done + tally.left
        assert (tally.finished, tally.failed) == tuple(
            list(ended.values()).count(end) for end in ("finished", "failed")
        )
        assert tally.half_made() == {i: made[i] for i in wanted if made[i] and i not in ended}


def test_an_extended_video_begins_where_it_ended() -> None:
    tally = Tally()
    tally.want("a", 9)
    tally.finish("a")
    tally.want("a", 13)
    assert (tally.done, tally.left, tally.finished) == (8, 4, 0)


def test_what_is_known_by_now_counts_more_than_what_was_looked_up() -> None:
    tally = Tally()
    for video_id in "abc":
        tally.want(video_id, 9)
    tally.settle("a", 5)
    tally.finish("c")
    tally.recall({"a": 3, "b": 4, "elsewhere": 7}, {"c", "other"})
    assert (tally.half_made(), tally.finished, tally.failed) == ({"a": 5, "b": 4}, 0, 1)
    assert (tally.done, tally.left) == (9, 7)
