"""What nobody waits for is written behind the operations, several at once; what cannot be is lost, and nothing fails for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from blockdev.engine.client import EngineClient
from blockdev.errors import PoolFull
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.catalog_jobs import JOBS_MAX, JobEnd, JobFilter, JobStart
from blockdev.vmmap.events import Events, enumerate_some, printable
from blockdev.vmmap.recorder import PENDING_MAX, Recorder
from blockdev.vmmap.reserve import DEFAULT_RESERVE
from blockdev.vmmap.service import VMs
from tests.nbd.file_system import mounted, take_all_room
from tests.vmmap.test_catalog import NOW

DONE = JobEnd("done", NOW)
ANY = JobFilter()


def start(id: str, kind: str = "snapshot.create", subject: str = "web@s1", caller: str = "owner") -> JobStart:
    return JobStart(id, kind, subject, caller, NOW)


@pytest.fixture
def recorder(catalog: Catalog) -> Iterator[Recorder]:
    made = Recorder(catalog)
    made.start()
    yield made
    made.close()


def note(recorder: Recorder, number: int) -> None:
    recorder.put(lambda catalog: catalog.insert_job(start(f"j{number}"), DONE))


def ids(catalog: Catalog, wanted: JobFilter = ANY, before: int | None = None, count: int = 100) -> list[str]:
    return [row.start.id for row in catalog.jobs(wanted, before, count)]


def test_a_put_waits_for_nobody_and_a_flush_for_all_before_it(catalog: Catalog, recorder: Recorder) -> None:
    transactions = 0
    original = catalog.transaction

    def counted(grows: bool = False):  # type: ignore[no-untyped-def]
        nonlocal transactions
        transactions += 1
        return original(grows)

    with catalog.transaction():  # which the recorder must wait for
        catalog.transaction = counted  # type: ignore[method-assign]
        for number in range(50):
            note(recorder, number)
    recorder.flush()
    assert ids(catalog) == [f"j{number}" for number in reversed(range(50))]
    assert transactions <= 3, "several are written at once"


def test_what_was_put_is_there_after_a_clean_end(catalog: Catalog) -> None:
    recorder = Recorder(catalog)
    recorder.start()
    note(recorder, 1)
    recorder.close()
    note(recorder, 2)  # by this thread
    assert ids(catalog) == ["j2", "j1"]


def test_a_flush_waits_also_when_something_was_written_before_the_start(catalog: Catalog) -> None:
    recorder = Recorder(catalog)
    for number in range(3):
        note(recorder, number)
    recorder.start()
    note(recorder, 3)
    recorder.flush()
    assert ids(catalog)[0] == "j3"
    recorder.close()


def test_what_is_put_while_it_ends_is_written(catalog: Catalog) -> None:
    for number in range(20):
        recorder = Recorder(catalog)
        recorder.start()
        ends = threading.Thread(target=recorder.close)
        ends.start()
        for part in range(5):
            recorder.put(partial(_insert, f"j{number}-{part}"))
        ends.join()
    assert len(ids(catalog)) == 100


def _insert(id: str, catalog: Catalog) -> None:
    catalog.insert_job(start(id), DONE)


def test_a_write_that_is_a_bug_costs_its_batch_and_no_more(catalog: Catalog, recorder: Recorder) -> None:
    recorder.put(lambda catalog: catalog.insert_job(None, DONE))  # type: ignore[arg-type]
    recorder.flush()
    note(recorder, 1)
    recorder.flush()
    assert ids(catalog) == ["j1"]


def test_more_than_can_wait_is_lost_and_ends_of_jobs_are_not(catalog: Catalog, recorder: Recorder) -> None:
    writing, held = threading.Event(), threading.Event()

    def hold(catalog: Catalog) -> None:
        catalog.insert_job(start("long"), JobEnd("running", None))
        writing.set()
        assert held.wait(60)

    recorder.put(hold, at_once=True)
    assert writing.wait(60)
    for number in range(PENDING_MAX + 50):
        note(recorder, number)
    recorder.put(lambda catalog: catalog.finish_job("long", JobEnd("failed", NOW)), grows=False)
    held.set()
    recorder.flush()
    assert ids(catalog, JobFilter(state="done"))[0] == f"j{PENDING_MAX - 1}"
    assert ids(catalog, JobFilter(state="failed")) == ["long"] and not catalog.unfinished_jobs()


def test_without_room_history_is_lost_and_a_job_that_began_still_ends() -> None:
    with mounted("ext4", 64 << 20) as directory:
        catalog = Catalog(Path(directory) / "catalog.db", DEFAULT_RESERVE)
        recorder = Recorder(catalog)
        recorder.start()
        events = Events(recorder.put, lambda: 0.0)
        recorder.put(lambda catalog: catalog.insert_job(start("long"), JobEnd("running", None)))
        recorder.flush()
        take_all_room(directory / "foreign")
        with pytest.raises(PoolFull), catalog.transaction(grows=True):
            pass
        events.note("info", "vm", "web", "lost")
        note(recorder, 1)
        recorder.put(lambda catalog: catalog.finish_job("long", JobEnd("failed", NOW, error_message="x" * 1000)), grows=False)
        recorder.flush()
        assert [(row.start.id, row.end.state) for row in catalog.jobs(JobFilter(), None, 9)] == [("long", "failed")]
        (directory / "foreign").unlink()
        note(recorder, 2)
        events.note("info", "vm", "web", "kept")
        recorder.flush()
        assert ids(catalog) == ["j2", "long"]
        assert [one.message for one in catalog.events(None, ["info"], None, 9)] == ["kept"]
        recorder.close()
        catalog.close()


def test_the_newest_jobs_are_kept_and_those_that_have_not_ended(catalog: Catalog) -> None:
    with catalog.transaction():
        catalog.insert_job(start("runs"), JobEnd("running", None))
        for number in range(JOBS_MAX + 5):
            catalog.insert_job(start(f"j{number}"), DONE)
    found = ids(catalog, count=2 * JOBS_MAX)
    assert found[0] == f"j{JOBS_MAX + 4}" and found[-2:] == ["j5", "runs"] and len(found) == JOBS_MAX + 1


def test_jobs_are_found_by_what_they_are_and_page_by_page(catalog: Catalog) -> None:
    rows = [
        ("a", "snapshot.create", "web@s1", "owner", "done"),
        ("b", "vm.create", "web", "owner", "failed"),
        ("c", "snapshot.delete", "webs@s1", "ci", "done"),
        ("d", "disk.add", "web/root", "ci", "done"),
    ]
    with catalog.transaction():
        for *named, state in rows:
            catalog.insert_job(start(*named), JobEnd(state, NOW))
    assert ids(catalog, JobFilter(kind="snapshot")) == ["c", "a"]
    assert ids(catalog, JobFilter(kind="snap")) == []
    assert ids(catalog, JobFilter(subject="web")) == ["d", "b", "a"]
    assert ids(catalog, JobFilter(caller="ci", kind="disk.add")) == ["d"]
    assert ids(catalog, JobFilter(state="failed")) == ["b"]
    first = catalog.jobs(JobFilter(), None, 3)
    assert [row.start.id for row in first] == ["d", "c", "b"] and ids(catalog, before=first[-1].number) == ["a"]


def test_a_trouble_is_noted_when_it_begins_and_when_it_ends(catalog: Catalog) -> None:
    events = Events(Recorder(catalog).put, lambda: 0.0)
    for _ in range(3):
        events.begin("warning", "quiesce", "web", "not frozen")
        events.begin("warning", "quiesce", "db", "not frozen")
    events.end("quiesce", "web", "frozen again")
    events.end("quiesce", "web", "frozen again")
    events.begin("warning", "quiesce", "web", "not frozen")
    told = [(one.vm, one.level) for one in reversed(catalog.events(None, ["info", "warning"], None, 9))]
    assert told == [("web", "warning"), ("db", "warning"), ("web", "info"), ("web", "warning")]


def test_a_vm_has_troubles_of_its_own_whoever_had_its_name(catalog: Catalog, client: EngineClient) -> None:
    events = Events(Recorder(catalog).put, lambda: 0.0)
    vms = VMs(catalog, client, events=events)
    for _ in range(2):
        vms.create_vm("web", [])
        events.begin("warning", "quiesce", "web", "not frozen")
        vms.delete_vm("web")
    assert len(catalog.events(None, ["warning"], None, 9)) == 2


def test_what_a_client_sent_is_written_as_one_printable_line() -> None:
    assert printable("a\x1b[31m\nb\ud800\x00", 99) == "a?[31m b??"
    assert printable("x" * 50, 10) == "x" * 7 + "..."
    assert enumerate_some([str(number) for number in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
