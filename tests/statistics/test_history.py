"""History rolls up exactly, has gaps where nothing is known, and is readable whenever its writer dies."""

from __future__ import annotations

import os
import random
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockdev.engine.statistics import bucket_bounds_ns
from blockdev.errors import InvalidArgument
from blockdev.statistics import coding, figures, layout
from blockdev.statistics.figures import OF
from blockdev.statistics.history import History
from blockdev.statistics.layout import RINGS
from blockdev.statistics.slots import Seen, p99_ns
from tests.statistics.load import BEGIN, nothing, seen, uuids

TEN, FIVE_MINUTES, HOUR = RINGS
EXACT = ("reads", "writes", "flushes", "read_bytes", "written_bytes")
CODED = ("read_ns", "write_ns", "flush_ns", "log_ns", "medium_ns", "compaction_ns", "appended_bytes")


def opened(directory: Path, vms: list[str], looked: float | None = None) -> History:
    made = History(directory)
    made.files.make_directory()
    made.arrange(vms)
    if looked is not None:
        made.check_files()
        made.resume(looked)
    return made


def kept(history: History, vm: str, ring: layout.Ring, begin: float, end: float) -> figures.Span:
    first = int(begin // ring.seconds)
    return history.files.read(vm, ring, first, int(end // ring.seconds) - first)


def test_sums_roll_up_exactly_whatever_the_intervals_between_looks(tmp_path: Path, seed: int) -> None:
    random_, vms = random.Random(seed), uuids(3)
    history, now, given = opened(tmp_path, vms), BEGIN, np.zeros((3, len(figures.SUMS)), np.int64)
    while now < BEGIN + 2 * 3600:
        until = min(now + random_.uniform(0.5, 25), BEGIN + 2 * 3600)
        part = seen(random_, 3)
        history.add(now, until, part)
        given, now = given + part.sums, until
    history.add(now, now + 1, nothing(3))  # so that the slots before end
    for row, vm in enumerate(vms):
        spans = [kept(history, vm, ring, BEGIN, now) for ring in RINGS]
        for name in EXACT:
            totals = [int(span.sums[:, OF[name]].sum()) for span in spans]
            assert totals == [given[row, OF[name]]] * 3, (name, vm)
        for name in CODED:
            for span in spans:
                assert span.sums[:, OF[name]].sum() == pytest.approx(given[row, OF[name]], rel=coding.ERROR_MAX, abs=500 * len(span.sums))
        ten, five, hour = (span.sums[:, : len(EXACT)] for span in spans)
        assert np.array_equal(ten.reshape(-1, 30, len(EXACT)).sum(axis=1), five)
        assert np.array_equal(five.reshape(-1, 12, len(EXACT)).sum(axis=1), hour)
        assert [float(span.seconds.sum()) for span in spans] == [7200.0] * 3


def test_the_p99_of_a_long_slot_is_that_of_all_its_requests(tmp_path: Path, seed: int) -> None:
    random_, vms = random.Random(seed), uuids(1)
    history, everything = opened(tmp_path, vms), nothing(1).histograms
    for step in range(360):
        part = seen(random_, 1, scale=300)
        history.add(BEGIN + step * 10, BEGIN + step * 10 + 10, part)
        everything = everything + part.histograms
    history.add(BEGIN + 3600, BEGIN + 3601, nothing(1))
    found = kept(history, vms[0], HOUR, BEGIN, BEGIN + 3600).p99_ns[0]
    assert found == pytest.approx(p99_ns(everything)[0], rel=coding.SHORT_ERROR_MAX, abs=coding.SHORT_ERROR_MAX * coding.SHORT_UNIT_NS)
    worst = kept(history, vms[0], TEN, BEGIN, BEGIN + 3600).p99_ns
    assert (np.nanmin(worst, axis=0) <= found).all() and (found <= np.nanmax(worst, axis=0)).all()


def test_the_p99_of_a_wait_is_of_all_requests_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    """2 % of requests wait for the medium, half a percent for compaction, none for the log."""
    [vm] = uuids(1)
    history, part = opened(tmp_path, [vm]), nothing(1)
    part.sums[0, [OF["reads"], OF["read_ns"]]] = 1000, 10**9
    part.sums[0, [OF["medium_ns"], OF["compaction_ns"]]] = 20 * 5_000_000, 5 * 90_000_000
    part.histograms[0, 0, 100] = 1000
    for place, (waited, bucket) in enumerate(((0, 0), (20, 98), (5, 131)), 3):  # 98: 4.2 to 4.7 ms
        part.histograms[0, place, 0] = 1000 - waited
        part.histograms[0, place, bucket] += waited
    bounds = bucket_bounds_ns()
    for step in range(20):
        history.add(BEGIN + step * 10, BEGIN + step * 10 + 10, part)
        if step == 10:
            history.stop()
            history = opened(tmp_path, [vm], BEGIN + 110)
    history.add(BEGIN + 3600, BEGIN + 3601, nothing(1))
    for ring, end in ((TEN, BEGIN + 10), (FIVE_MINUTES, BEGIN + 300), (HOUR, BEGIN + 3600)):
        log, medium, compaction = kept(history, vm, ring, BEGIN, end).p99_ns[0, 3:].tolist()
        assert log == compaction == 0 and bounds[97] <= medium <= bounds[100], ring.seconds
    graph = history.graph(vm, int(BEGIN), int(BEGIN) + 60, 6, BEGIN + 200)
    assert 4000 < graph.columns["wait_medium_us_p99"][0] < 5000 and graph.columns["wait_log_us_p99"][0] == 0
    assert np.isnan(history.graph(vm, int(BEGIN) - 60, int(BEGIN), 6, BEGIN + 200).columns["wait_medium_us_p99"]).all()


# as version 1 wrote a slot of each ring at BEGIN
VERSION_1 = (
    "ede0102607000000050000000200000000700000005000000000000019331252283169548c34f65adf273532f02001380150000000005b14",
    "9ce2105307000000050000000200000000700000005000000000000019331252283169548c34f65adf273532f02001380150000000005b140178017c587e",
    "1ce010b507000000050000000200000000700000005000000000000019331252283169548c34f65adf273532f02001380150000000005b140178017c587e",
)


def test_history_of_version_1_is_kept_but_for_what_it_did_not_have(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    [vm] = uuids(1)
    history = opened(tmp_path, [vm])
    data = bytearray(layout.FILE_BYTES)
    data[: layout.HEADER_BYTES] = layout.header(uuid.UUID(vm).bytes, 1)
    for ring, slot in zip(RINGS, VERSION_1, strict=True):
        number = int(BEGIN) // ring.seconds
        for at, content in ((number, bytes.fromhex(slot)), (number + 1, b"\1" * ring.slot.itemsize)):  # the other one is none
            offset = layout.place(ring, at)[0]
            data[offset : offset + ring.slot.itemsize] = content
    path = history.files.path(vm)
    path.write_bytes(data)
    assert history.files.read(vm, TEN, int(BEGIN) // 10, 1).seconds.tolist() == [0.0], "not without being converted"
    history.check_files()
    assert path.stat().st_size == layout.FILE_BYTES and path.stat().st_blocks * 512 < 64 << 10
    for ring in RINGS:
        found = history.files.read(vm, ring, int(BEGIN) // ring.seconds, 2)
        assert found.seconds.tolist() == [float(ring.seconds), 0.0]
        assert found.sums[0, : len(EXACT)].tolist() == [7, 5, 2, 28672, 20480]
        assert found.sums[0, len(EXACT) :] == pytest.approx([7e6, 5e6, 9e6, 1e6, 6e6, 3e5, 16384, np.nan, np.nan], rel=0.002, nan_ok=True)
        p99 = [1.5e6, 2.25e6, 7e6, np.nan, np.nan, np.nan]
        assert found.p99_ns[0] == pytest.approx(p99, rel=coding.SHORT_ERROR_MAX + 0.001, nan_ok=True)
        space = [np.nan] * 3 if ring is TEN else [1 << 30, 2 << 30, 3 << 30]
        assert found.gauges[0] == pytest.approx([1 << 20, 33, *space], rel=0.002, nan_ok=True)
    assert not caplog.records and not list(path.parent.glob("*.damaged"))
    before = path.read_bytes()
    history.check_files()
    assert path.read_bytes() == before


def test_where_nobody_looked_is_a_gap_and_where_nothing_happened_is_a_zero(tmp_path: Path) -> None:
    [vm] = uuids(1)
    history = opened(tmp_path, [vm])
    history.add(BEGIN, BEGIN + 10, nothing(1))
    history.add(BEGIN + 70, BEGIN + 80, nothing(1))
    graph = history.graph(vm, int(BEGIN) - 20, int(BEGIN) + 90, 100, BEGIN + 90)
    assert graph.step_seconds == 10 and graph.times[0] == BEGIN - 20
    assert figures.listed("read_iops", graph.columns["read_iops"]) == [None, None, 0, *[None] * 6, 0, None]
    assert figures.listed("read_latency_us_p99", graph.columns["read_latency_us_p99"]) == [None] * 11


def test_a_slot_of_a_lap_before_is_a_gap(tmp_path: Path) -> None:
    [vm] = uuids(1)
    history = opened(tmp_path, [vm])
    history.add(BEGIN, BEGIN + 10, nothing(1))
    history.add(BEGIN + 10, BEGIN + 11, nothing(1))
    assert kept(history, vm, TEN, BEGIN, BEGIN + 10).seconds.tolist() == [10.0]
    later = BEGIN + TEN.span_seconds
    assert layout.place(TEN, int(BEGIN) // 10)[0] == layout.place(TEN, int(later) // 10)[0], "the same place"
    assert kept(history, vm, TEN, later, later + 10).seconds.tolist() == [0.0]


def test_the_clock_may_be_set_back(tmp_path: Path) -> None:
    [vm] = uuids(1)
    history = opened(tmp_path, [vm])
    for now in (BEGIN + 1000, BEGIN + 1010, BEGIN, BEGIN + 10, BEGIN + 20):
        history.add(now, now + 10, nothing(1))
    history.add(BEGIN + 30, BEGIN + 31, nothing(1))
    assert kept(history, vm, TEN, BEGIN, BEGIN + 30).seconds.tolist() == [10.0] * 3
    assert kept(history, vm, TEN, BEGIN + 1000, BEGIN + 1020).seconds.tolist() == [10.0] * 2


def test_damaged_bytes_are_gaps_and_never_numbers(tmp_path: Path, seed: int) -> None:
    random_, [vm] = random.Random(seed), uuids(1)
    history = opened(tmp_path, [vm])
    for step in range(60):
        history.add(BEGIN + step * 10, BEGIN + step * 10 + 10, seen(random_, 1))
    history.add(BEGIN + 600, BEGIN + 601, nothing(1))
    sound = kept(history, vm, TEN, BEGIN, BEGIN + 600)
    path = history.files.path(vm)
    whole = path.read_bytes()
    numbers = range(int(BEGIN) // 10, int(BEGIN) // 10 + 60)
    damaged = bytearray(whole)
    for number in numbers:
        damaged[layout.place(TEN, number)[0] + random_.randrange(TEN.slot.itemsize)] ^= random_.randrange(1, 256)
    path.write_bytes(damaged)
    found = kept(history, vm, TEN, BEGIN, BEGIN + 600)
    passed = [index for index in range(60) if found.seconds[index] > 0]
    assert not passed, "one wrong byte changes the checksum"
    path.write_bytes(whole)
    assert np.array_equal(kept(history, vm, TEN, BEGIN, BEGIN + 600).sums, sound.sums, equal_nan=True)
    path.write_bytes(whole[: layout.place(TEN, numbers[30])[0]])  # cut short
    assert (kept(history, vm, TEN, BEGIN, BEGIN + 600).seconds > 0).tolist() == [True] * 30 + [False] * 30


@pytest.mark.parametrize("offset", [0, 8, 20, 60, layout.HEADER_BYTES - 1])
def test_a_file_with_another_header_is_put_aside_and_begun_anew(tmp_path: Path, offset: int, caplog: pytest.LogCaptureFixture) -> None:
    [vm] = uuids(1)
    opened(tmp_path, [vm]).files.write(TEN, 1, [vm], layout.encode(TEN, 1, figures.Span(*_one_second())))
    history = opened(tmp_path, [vm])
    path = history.files.path(vm)
    damaged = bytearray(path.read_bytes())
    damaged[offset] ^= 1
    path.write_bytes(damaged)
    assert history.files.read(vm, TEN, 1, 1).seconds.tolist() == [0.0]
    history.check_files()
    assert "damaged" in caplog.text and path.with_suffix(".damaged").exists() and not path.exists()
    history.add(BEGIN, BEGIN + 10, nothing(1))
    history.stop()
    assert kept(history, vm, TEN, BEGIN, BEGIN + 10).seconds.tolist() == [10.0]


def _one_second() -> list[Any]:
    return [np.ones(1), np.ones((1, len(figures.SUMS))), np.ones((1, len(figures.QUANTILES))), np.ones((1, len(figures.GAUGES)))]


class Died(BaseException):
    """The process ends here."""


@pytest.fixture
def die_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[str]]]:
    """die_at(n): the process ends before its nth step on the file system; the steps that it took."""
    real = {name: getattr(os, name) for name in ("open", "pwrite", "ftruncate", "rename")}

    def arm(count: int) -> list[str]:
        steps: list[str] = []

        def step(name: str) -> Callable[..., Any]:
            def do(*arguments: Any, **named: Any) -> Any:
                if len(steps) == count:
                    raise Died
                steps.append(name)
                return real[name](*arguments, **named)

            return do

        for name in real:
            monkeypatch.setattr(os, name, step(name))
        return steps

    yield arm
    monkeypatch.undo()


def test_a_death_at_any_step_leaves_files_that_lost_no_slot_that_had_ended(
    tmp_path: Path, seed: int, die_at: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies at each step around an end of an hour, where slots of all rings end; then it goes on, with a gap of 5 s."""
    random_, vms, looks = random.Random(seed), uuids(2), range(358, 362)
    parts = [seen(random_, 2, scale=500) for _ in range(362)]
    base, now = opened(tmp_path / "base", vms), BEGIN
    for part in parts[: looks[0]]:
        base.add(now, now + 10, part)
        now += 10
    base.stop()
    begun = now
    of_parts = np.array([part.sums[:, : len(EXACT)] for part in parts])
    for death in range(200):
        directory, now, looked = tmp_path / str(death), begun, begun
        shutil.copytree(tmp_path / "base", directory)
        history, steps, died = opened(directory, vms, looked), die_at(death), False
        try:
            for look in looks:
                history.add(now, now + 10, parts[look])
                now += 10
                looked = now  # which the totals note
        except Died:
            died = True
        monkeypatch.undo()
        ended = int((looked - BEGIN) // 10) - 1  # the last one's slot is open still
        history = opened(directory, vms, looked)
        history.add(now + 15, now + 25, nothing(2))
        history.add(now + 4000, now + 4010, nothing(2))
        for row, vm in enumerate(vms):
            tens = kept(history, vm, TEN, BEGIN, BEGIN + ended * 10)
            assert np.array_equal(tens.sums[:, : len(EXACT)], of_parts[:ended, row]), (death, steps)
            fives = kept(history, vm, FIVE_MINUTES, BEGIN, BEGIN + 3300).sums[:, : len(EXACT)]
            assert np.array_equal(fives, of_parts[:330, row].reshape(11, 30, len(EXACT)).sum(axis=1)), (death, steps)
            [hour] = kept(history, vm, HOUR, BEGIN, BEGIN + 3600).sums[:, : len(EXACT)]
            lost = of_parts[:360, row].sum(axis=0) - hour
            assert (lost >= 0).all() and (lost <= of_parts[357:360, row].sum(axis=0)).all(), (death, steps)
        if not died:
            assert death > 10 and {"open", "pwrite"} <= set(steps)
            return
    raise AssertionError("it never got to the end")


def test_a_death_while_a_file_is_made_leaves_none_or_a_whole_one(
    tmp_path: Path, die_at: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    [vm] = uuids(1)
    for death in range(20):
        history = opened(tmp_path / str(death), [vm])
        history.add(BEGIN, BEGIN + 10, nothing(1))
        steps = die_at(death)
        died = False
        try:
            history.add(BEGIN + 10, BEGIN + 20, nothing(1))
        except Died:
            died = True
        monkeypatch.undo()
        again = opened(tmp_path / str(death), [vm], BEGIN + 20)
        path = again.files.path(vm)
        assert not path.exists() or path.stat().st_size == layout.FILE_BYTES, steps
        assert not list(path.parent.glob("*.new")) and not list(path.parent.glob("*.damaged"))
        if not died:
            assert "rename" in steps and "ftruncate" in steps
            return
    raise AssertionError("it never got to the end")


def test_going_on_after_a_stop_loses_nothing(tmp_path: Path, seed: int) -> None:
    random_, [vm] = random.Random(seed), uuids(1)
    now, given, history = BEGIN, np.zeros(len(EXACT)), opened(tmp_path, [vm])
    while now < BEGIN + 3600:
        until = min(now + random_.uniform(1, 20), BEGIN + 3600)
        part = seen(random_, 1, scale=2000)
        history.add(now, until, part)
        given, now = given + part.sums[0, : len(EXACT)], until
        if random_.random() < 0.05:
            history.stop()
            history = opened(tmp_path, [vm], now)
    history.add(now, now + 1, nothing(1))
    assert kept(history, vm, HOUR, BEGIN, BEGIN + 3600).sums[0, : len(EXACT)].tolist() == given.tolist()
    [seconds] = kept(history, vm, HOUR, BEGIN, BEGIN + 3600).seconds
    assert seconds == pytest.approx(3600, rel=0.02)


def test_vms_that_come_and_go_keep_to_their_own(tmp_path: Path, seed: int) -> None:
    random_, vms = random.Random(seed), uuids(4)
    history = opened(tmp_path, vms[:2])
    first, second = seen(random_, 2), seen(random_, 3)
    history.add(BEGIN, BEGIN + 5, first)
    history.arrange([vms[3], vms[1], vms[2]])  # the first one went, two came
    history.add(BEGIN + 5, BEGIN + 10, second)
    history.add(BEGIN + 10, BEGIN + 11, nothing(3))
    assert sorted(history.files.vms()) == sorted(vms[1:])
    stayed = kept(history, vms[1], TEN, BEGIN, BEGIN + 10)
    assert stayed.sums[0, OF["reads"]] == first.sums[1, OF["reads"]] + second.sums[1, OF["reads"]]
    new = kept(history, vms[3], TEN, BEGIN, BEGIN + 10)
    assert new.sums[0, OF["reads"]] == second.sums[0, OF["reads"]] and new.seconds[0] == pytest.approx(5, abs=0.01)


def test_what_a_full_medium_does_not_take_is_a_gap_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    [vm] = uuids(1)
    history, real = opened(tmp_path, [vm]), os.pwrite

    def full(*arguments: Any) -> int:
        raise OSError(28, "No space left on device")

    history.add(BEGIN, BEGIN + 10, nothing(1))
    monkeypatch.setattr(os, "pwrite", full)
    for step in range(1, 5):
        history.add(BEGIN + step * 10, BEGIN + step * 10 + 10, nothing(1))
    monkeypatch.setattr(os, "pwrite", real)
    history.add(BEGIN + 50, BEGIN + 60, nothing(1))
    history.add(BEGIN + 60, BEGIN + 61, nothing(1))
    assert len([one for one in caplog.records if "gap" in one.message]) == 1
    assert kept(history, vm, TEN, BEGIN, BEGIN + 60).seconds.tolist() == [0.0] * 4 + [10.0] * 2


def test_a_graph_has_as_many_steps_as_asked_and_their_sums_are_the_slots(tmp_path: Path, seed: int) -> None:
    random_, [vm] = random.Random(seed), uuids(1)
    history, parts = opened(tmp_path, [vm]), []
    for step in range(720):
        parts.append(seen(random_, 1, scale=100))
        history.add(BEGIN + step * 10, BEGIN + step * 10 + 10, parts[-1])
    now = BEGIN + 7200
    reads = sum(int(part.sums[0, OF["reads"]]) for part in parts)
    for points in (1, 2, 7, 100, 2000):
        graph = history.graph(vm, int(BEGIN), int(now), points, now)
        assert len(graph.times) <= points and graph.step_seconds % 10 == 0
        iops = np.nan_to_num(graph.columns["read_iops"])
        if graph.step_seconds in (10, 20, 80):  # whole steps only
            assert float(iops.sum()) * graph.step_seconds == pytest.approx(reads)
    assert history.graph(vm, int(now) - 40 * 86400, int(now), 500, now).step_seconds % 3600 == 0
    for since, until in ((10, 10), (20, 10), (0, 800 * 86400)):
        with pytest.raises(InvalidArgument):
            history.graph(vm, since, until, 10, now)


def test_the_open_slots_are_in_the_graph(tmp_path: Path) -> None:
    [vm] = uuids(1)
    history = opened(tmp_path, [vm])
    part = nothing(1)
    part.sums[0, OF["reads"]] = 500
    history.add(BEGIN, BEGIN + 5, part)
    now = BEGIN + 5
    for span_seconds in (3600, 7 * 86400, 300 * 86400):
        graph = history.graph(vm, int(now) - span_seconds, int(now), 500, now)
        assert [value for value in graph.columns["read_iops"].tolist() if value == value] == [100.0], span_seconds


def test_codes_keep_order_and_are_close(seed: int) -> None:
    random_ = random.Random(seed)
    values = np.array(sorted([0.0, 1.0, *(2 ** random_.uniform(0, 62) for _ in range(2000))]))
    found = coding.decode(coding.encode(values))
    assert found[0] == 0 and found[1] == 1 and (np.diff(found) >= 0).all()
    assert (np.abs(found - values) <= coding.ERROR_MAX * (1 + values)).all()
    assert np.isnan(coding.decode(coding.encode(np.array([np.nan, -1.0])))).all()
    times = values[values <= 1 << 36]
    found = coding.decode_short(coding.encode_short(times))
    assert found[0] == 0 and (np.diff(found) >= 0).all()
    assert (np.abs(found - times) <= coding.SHORT_ERROR_MAX * (coding.SHORT_UNIT_NS + times)).all()
    assert np.isnan(coding.decode_short(coding.encode_short(np.array([np.nan, -1.0])))).all()


def test_space_and_replication_are_kept_and_unknown_ones_are_not_zeros(tmp_path: Path) -> None:
    vms = uuids(2)
    history = opened(tmp_path, vms)
    part = nothing(2)
    part = Seen(part.sums, part.histograms, part.gauges, np.array([True, False]))
    part.sums[0, OF["logical_bytes"]] = 5_000_000
    part.gauges[0] = [1 << 30, 77, 10 << 30, 2 << 30, 3 << 30]
    history.add(BEGIN, BEGIN + 10, part)
    history.add(BEGIN + 300, BEGIN + 301, nothing(2))
    graph = history.graph(vms[0], int(BEGIN), int(BEGIN) + 300, 1, BEGIN + 5 * 86400)
    shown = {name: values[0] for name, values in graph.columns.items()}
    assert shown["live_bytes"] == pytest.approx(10 << 30, rel=coding.ERROR_MAX)
    assert shown["replication_lag_seconds"] == pytest.approx(77, rel=coding.ERROR_MAX)
    assert shown["replication_logical_bytes_per_second"] == pytest.approx(500_000, rel=coding.ERROR_MAX)
    other = history.graph(vms[1], int(BEGIN), int(BEGIN) + 300, 1, BEGIN + 5 * 86400)
    assert other.columns["read_iops"][0] == 0 and np.isnan(other.columns["replication_logical_bytes_per_second"][0])


def test_a_graph_of_short_steps_has_the_space_of_the_five_minutes_they_are_in(tmp_path: Path) -> None:
    [vm] = uuids(1)
    history = opened(tmp_path, [vm])
    for step in range(75):  # ten minutes are over, then two and a half
        if step != 40:
            part = nothing(1)
            part.gauges[0, 2:] = [(1 + step // 30) << 30, 5, 7]
            history.add(BEGIN + 10 * step, BEGIN + 10 * step + 10, part)
    found = history.graph(vm, int(BEGIN), int(BEGIN) + 800, 100, BEGIN + 750).columns["live_bytes"]
    sizes = [(1 + step // 30) << 30 for step in range(75)]
    assert found[:40] == pytest.approx(sizes[:40], rel=coding.ERROR_MAX) and found[41:75] == pytest.approx(sizes[41:], rel=coding.ERROR_MAX)
    assert np.isnan([found[40], *found[75:]]).all()  # of a gap and of what is to come nothing is known


def test_what_was_changed_in_a_day_survives_a_restart(tmp_path: Path) -> None:
    [vm] = uuids(1)
    history, now = opened(tmp_path, [vm]), BEGIN
    for _hour in range(30):
        part = nothing(1)
        part.sums[0, OF["appended_bytes"]] = 1 << 30
        history.add(now, now + 25, part)
        now += 3600
    history.add(now, now + 25, nothing(1))
    assert history.changed_in_a_day()[0] == pytest.approx(23 << 30, rel=0.001)
    history.stop()
    assert opened(tmp_path, [vm], now + 25).changed_in_a_day()[0] == pytest.approx(23 << 30, rel=0.001)


def test_buckets_of_the_engine_are_those_that_are_kept() -> None:
    assert len(bucket_bounds_ns()) == 211
