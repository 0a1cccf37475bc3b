"""The catalog's file: what is opened, what is refused and left alone, and that it keeps what it was told."""

from __future__ import annotations

import gzip
import json
import os
import re
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockdev.errors import Busy, Corrupt, MediumError, UnknownFormat
from blockdev.policies import AS_POOL, DiskPolicy
from blockdev.vmmap import catalog_replication as rows
from blockdev.vmmap import catalog_schema, catalog_targets
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.catalog_jobs import JobFilter
from blockdev.vmmap.catalog_schema import APPLICATION_ID, SCHEMA_VERSION
from blockdev.vmmap.intents import BeginCopy, CreateSnapshot, CreateVM, FinishCopy, load_intent
from blockdev.vmmap.model import Terms
from tests.vmmap.world import LATER

VERSION_1 = Path(__file__).with_name("catalog-version-1.db.gz")
VERSION_2 = Path(__file__).with_name("catalog-version-2.db.gz")
VERSION_3 = Path(__file__).with_name("catalog-version-3.db.gz")
VERSION_4 = Path(__file__).with_name("catalog-version-4.db.gz")
VERSION_5 = Path(__file__).with_name("catalog-version-5.db.gz")
VERSION_6 = Path(__file__).with_name("catalog-version-6.db.gz")
UUID = "8d0c6b9a-3c11-4c4e-9a39-0b6f6d2f3b11"
OTHER_UUID = "0d0c6b9a-3c11-4c4e-9a39-0b6f6d2f3b12"
NOW = "2026-11-22T12:00:00.000Z"


def pragma(catalog: Catalog, name: str) -> object:
    return catalog._database.execute(f"PRAGMA {name}").fetchone()[0]


def test_it_is_durable_strict_and_for_its_owner_alone(catalog: Catalog, catalog_path: str) -> None:
    assert pragma(catalog, "journal_mode") == "wal"
    assert pragma(catalog, "synchronous") == 2  # FULL
    assert pragma(catalog, "foreign_keys") == 1
    assert pragma(catalog, "application_id") == APPLICATION_ID
    assert pragma(catalog, "user_version") == SCHEMA_VERSION
    tables = catalog._database.execute(
        "SELECT name, strict FROM pragma_table_list WHERE schema = 'main'"
    ).fetchall()
    assert all(strict for name, strict in tables if not name.startswith("sqlite_"))
    assert stat.S_IMODE(os.stat(catalog_path).st_mode) == 0o600


ROWS = {
    "peer": rows.PeerRow,
    "path": rows.PathRow,
    "protection": rows.ProtectionRow,
    "received_vm": rows.ReceivedRow,
    "made_vm": rows.MadeRow,
    "receipt": rows.ReceiptRow,
    "receipt_disk": rows.ReceiptDiskRow,
    "transfer": rows.TransferRow,
    "replication_sample": rows.SampleRow,
    "target": catalog_targets.TargetRow,
    "target_portal": catalog_targets.PortalRow,
    "target_initiator": catalog_targets.InitiatorRow,
    "target_lun": catalog_targets.TargetLunRow,
}


@pytest.mark.parametrize("table", ROWS)
def test_rows_have_the_columns_of_their_table_in_its_order(catalog: Catalog, table: str) -> None:
    columns = [row[1] for row in catalog._database.execute(f"PRAGMA table_info({table})")]
    assert columns == list(ROWS[table]._fields)


def test_what_a_transaction_wrote_is_there_after_reopening(catalog: Catalog, catalog_path: str) -> None:
    with catalog.transaction():
        catalog.insert_vm(UUID, "web", NOW, config="<x/>")
    catalog.close()
    again = Catalog(catalog_path)
    row = again.vm("web")
    assert row is not None and again.config_text(row.config_id) == "<x/>"
    again.close()


def test_a_transaction_that_fails_leaves_nothing(catalog: Catalog) -> None:
    with pytest.raises(KeyError), catalog.transaction():
        catalog.insert_vm(UUID, "web", NOW)
        raise KeyError
    assert catalog.vms() == []
    with catalog.transaction():
        catalog.insert_vm(UUID, "web", NOW)


def test_a_catalog_of_another_version_is_refused_and_left_alone(catalog: Catalog, catalog_path: str) -> None:
    catalog.close()
    database = sqlite3.connect(catalog_path)
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    with open(catalog_path, "rb") as file:
        before = file.read()
    with pytest.raises(
        UnknownFormat, match=f"version {SCHEMA_VERSION + 1}; this build reads 1 to {SCHEMA_VERSION}"
    ):
        Catalog(catalog_path)
    with open(catalog_path, "rb") as file:
        assert file.read() == before


def schema(catalog: Catalog) -> dict[str, list[object]]:
    """The columns of each table, and what indexes it has."""
    tables = [row[0] for row in catalog._database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    return {
        table: [
            *catalog._database.execute(f"PRAGMA table_xinfo({table})").fetchall(),
            *sorted(row[1] for row in catalog._database.execute(f"PRAGMA index_list({table})")),
        ]
        for table in tables
    }


def opened_twice(sample: Path, path: Path, new: Catalog) -> Iterator[Catalog]:
    """The catalog that an earlier build made, at `path`, as it is when it is brought to this version, and when it is opened again."""
    path.write_bytes(gzip.decompress(sample.read_bytes()))
    for _ in range(2):
        old = Catalog(path)
        assert pragma(old, "user_version") == SCHEMA_VERSION
        assert schema(old) == schema(new)
        yield old
        old.close()


def test_a_catalog_of_version_1_is_brought_to_this_one_and_keeps_all(catalog: Catalog, tmp_path: Path) -> None:
    """The file was made by the last build of version 1."""
    path = tmp_path / "old.db"
    for old in opened_twice(VERSION_1, path, catalog):
        copy, web = old.vms()
        assert (web.name, web.description, copy.cloned_from) == ("web", "the web server", "web@s1")
        assert web.policy == copy.policy == AS_POOL
        assert old.config_text(web.config_id) == old.config_text(copy.config_id) == "<web/>"
        assert [disk.name for disk in old.disks(web.id)] == ["root", "data"]
        assert [part.object_id for part in old.snapshot_disks_of_vm(web.id)] == [3]
        assert [row.object_id for row in old.imports()] == [4]
        assert [load_intent(row).policy(old) for row in old.intents()] == [AS_POOL, AS_POOL]
    again = Catalog(path)
    with again.transaction():
        again.set_policy(again.vms()[0].id, DiskPolicy("off", "on"))
    assert [vm.policy for vm in again.vms()] == [DiskPolicy("off", "on"), AS_POOL]
    again.close()


def test_a_catalog_of_version_2_is_brought_to_this_one_and_keeps_all(catalog: Catalog, tmp_path: Path) -> None:
    """The file was made by the last build of version 2."""
    path = tmp_path / "old.db"
    for old in opened_twice(VERSION_2, path, catalog):
        copy, web = old.vms()
        assert (web.name, web.policy, web.own_schedules, web.agent) == ("web", DiskPolicy("inline", "off"), 0, None)
        assert copy.cloned_from == "web@s1"
        found = old.snapshots(web.id)
        assert [(one.name, one.lsn, one.description) for one in found] == [
            ("s1", 7, "of manual"),
            ("clone-1", 8, "of clone"),
            ("restore-1", 9, "of restore"),
        ]
        assert [one.terms() for one in found] == [Terms("manual"), Terms("clone"), Terms("restore")]
        assert [part.object_id for part in old.snapshot_disks_of_vm(web.id)] == [10, 11, 12]
        assert [row.object_id for row in old.imports()] == [20]
        [intent] = [load_intent(row) for row in old.intents()]
        assert isinstance(intent, CreateSnapshot) and Terms(*intent.terms) == Terms("manual")
        assert old.schedules() == {} and old.schedule_runs() == [] and old.events(None, ["info"], None, 9) == []
    again = Catalog(path)
    with again.transaction():
        again.set_snapshot_terms(again.snapshots()[0].id, "kept", LATER, LATER)
    assert again.snapshots_expired(NOW) == [] and [one.name for one in again.snapshots_expired(LATER)] == ["s1"]
    assert again.locked_snapshot(1, NOW) == again.snapshots()[0] and again.locked_snapshot(1, LATER) is None
    again.close()


def test_a_catalog_of_version_3_is_brought_to_this_one_and_keeps_all(catalog: Catalog, tmp_path: Path) -> None:
    """The file was made by the last build of version 3."""
    path = tmp_path / "old.db"
    for old in opened_twice(VERSION_3, path, catalog):
        copy, web = old.vms()
        assert (web.agent, web.own_schedules, copy.own_schedules) == ("/run/web.sock", 0, 1)
        found = old.snapshots(web.id)
        assert [one.terms() for one in found] == [
            Terms("manual", "vm", "vm", 12, None, "2027-01-01T00:00:00.000Z"),
            Terms("clone"),
            Terms("restore"),
            Terms("schedule", "crash", "vm", None, "2027-01-01T00:00:00.000Z", None, "daily", "2026-11-28T12:00:00.000Z"),
        ]
        assert [one.uuid for one in found] == [catalog_schema.snapshot_uuid(web.uuid, one.name, one.created) for one in found]
        assert [one.changed_bytes for one in found] == [None] * 4
        assert [row.failures for row in old.schedule_runs()] == [2]
        assert [one.message for one in old.events(None, ["error"], None, 9)] == ["schedule daily failed: the agent is away"]
        assert [type(load_intent(row)).kind for row in old.intents()] == ["create_snapshot", "clone"]


def test_a_catalog_of_version_4_is_brought_to_this_one_and_keeps_all(catalog: Catalog, tmp_path: Path) -> None:
    """The file was made by the last build of version 4."""
    path = tmp_path / "old.db"
    for old in opened_twice(VERSION_4, path, catalog):
        _copy, web = old.vms()
        assert [one.changed_bytes for one in old.snapshots(web.id)] == [4096, None, None, None]
        assert [one.uuid for one in old.snapshots(web.id)] == [
            catalog_schema.snapshot_uuid(web.uuid, one.name, one.created) for one in old.snapshots(web.id)
        ]
        assert {one.digest for one in old.snapshot_disks_of_vm(web.id)} == {None}
        assert [(one.name, one.role) for one in old.tokens()] == [("ops", "admin")]
        assert [row.start.kind for row in old.jobs(JobFilter(), None, 9)] == ["snapshot.import"]
        link = old.link(web.id)
        assert link is not None and (link.hypervisor, link.uuid, link.made) == ("hv", web.uuid, 1)
        assert [body["replicate"] for body in old.schedules()[None]] == [True]  # False did nothing in version 4
        begin, finish = [load_intent(row) for row in old.intents()]
        assert isinstance(begin, BeginCopy) and begin.receipt is None
        assert isinstance(finish, FinishCopy) and finish.heads and finish.peer is finish.receipt_ids is finish.digests is None
        assert old.peers() == old.paths() == old.protections() == old.received_vms() == old.receipts() == old.receipt_disks() == []
        assert old.transfers(None, None, 9) == old.samples(web.uuid, NOW) == []


def test_a_catalog_of_version_5_is_brought_to_this_one_and_keeps_all(catalog: Catalog, tmp_path: Path) -> None:
    """The file was made by the last build of version 5."""
    path = tmp_path / "old.db"
    for old in opened_twice(VERSION_5, path, catalog):
        far, web = old.vms()
        assert [disk.object_id for disk in old.disks(web.id)] == [1, 2]
        assert [part.digest for part in old.snapshot_disks_of_vm(web.id)] == [bytes(range(16)), None]
        assert [(one.name, one.host) for one in old.paths()] == [("east", "192.0.2.7")]
        assert [(one.vm_id, one.rpo_seconds) for one in old.protections()] == [(web.id, 3600)]
        received = old.received_vm(far.id)
        assert received is not None and received.promoted is None
        assert old.targets() == old.luns() == old.target_portals() == old.target_initiators() == []
    again = Catalog(path)
    with again.transaction():
        again.insert_target(web.id, "iqn.2026-11.io.blockdev:0c0c6b9a:web.8d0c6b9a", False, 64, NOW)
    assert [name for _, _, name, _, _ in again.lunless_disks()] == ["root", "data"]
    again.close()


def test_a_catalog_of_version_6_is_brought_to_this_one_without_the_passwords_that_it_kept(catalog: Catalog, tmp_path: Path) -> None:
    """The file was made by the last build of version 6."""
    path = tmp_path / "old.db"
    kept = "<domain><devices><graphics type='vnc'/></devices></domain>"
    for old in opened_twice(VERSION_6, path, catalog):
        other, same, web = old.vms()
        assert [old.config_text(vm.config_id) for vm in (other, same, web)] == ["<other/>", kept, kept]
        assert [one.config_id for one in old.snapshots(web.id)] == [web.config_id] == [same.config_id]
        assert config_texts(old) == [kept, "<other/>"]
        [intent] = [load_intent(row) for row in old.intents()]
        assert isinstance(intent, CreateVM) and intent.config == kept
        assert [json.loads(receipt.body)["config"] for receipt in old.receipts()] == [kept]
        with old.transaction():
            old.set_config(other.id, kept)
        assert config_texts(old) == [kept]
        with old.transaction():
            old.set_config(other.id, "<other/>")
    before, after = (set(re.findall(rb"secret\d+", content)) for content in (gzip.decompress(VERSION_6.read_bytes()), path.read_bytes()))
    assert before == {b"secret7", b"secret8", b"secret9", b"secret10"} and not after


def number_disks(catalog: Catalog) -> None:
    with catalog.transaction():
        for target_id, _uuid, name, disk_id, _created in catalog.lunless_disks():
            catalog.insert_lun(target_id, f"serial of {name}", disk_id)


def test_the_number_of_a_lun_is_given_to_no_other_disk(catalog: Catalog) -> None:
    with catalog.transaction():
        vm_id = catalog.insert_vm(UUID, "web", NOW)
        for object_id, name in enumerate(("root", "data"), 1):
            catalog.put_disk(vm_id, name, object_id, 4096, NOW)
        catalog.insert_target(vm_id, "iqn.2026-11.io.blockdev:0c0c6b9a:web.8d0c6b9a", False, 64, NOW)
    number_disks(catalog)
    with catalog.transaction():
        catalog.delete_disk(catalog.disks(vm_id)[1].id)
        catalog.put_disk(vm_id, "more", 3, 4096, NOW)
        catalog.put_disk(vm_id, "root", 4, 8192, NOW)  # as a restore does
    number_disks(catalog)
    assert [(lun.number, lun.serial, lun.export, lun.object_id) for lun in catalog.luns()] == [
        (0, "serial of root", "web/root", 4),
        (2, "serial of more", "web/more", 3),
    ]


def test_a_target_goes_with_its_vm_and_a_snapshots_luns_with_the_snapshot(catalog: Catalog) -> None:
    with catalog.transaction():
        vm_id = catalog.insert_vm(UUID, "web", NOW)
        snapshot_id = catalog.insert_snapshot(vm_id, "s1", NOW, 7)
        catalog.put_snapshot_disk(snapshot_id, "root", 1, 4096)
        target_id = catalog.insert_target(vm_id, "iqn.2026-11.io.blockdev:0c0c6b9a:web.8d0c6b9a", True, 64, NOW)
        catalog.set_target_portals(target_id, [("127.0.0.1", 3260), ("::1", 3260)])
        catalog.set_target_initiators(target_id, ["iqn.1993-08.org.debian:01:a"])
        [(disk_id, _name)] = catalog.lunless_snapshot_disks(target_id, snapshot_id)
        catalog.insert_lun(target_id, "serial", None, disk_id)
    assert [lun.export for lun in catalog.luns()] == ["web/root@s1"] and catalog.lunless_snapshot_disks(target_id, snapshot_id) == []
    with catalog.transaction():
        catalog.delete_snapshot(snapshot_id)
    assert catalog.luns() == [] and len(catalog.target_portals()) == 2
    with catalog.transaction():
        catalog.delete_vm(vm_id)
    assert catalog.targets() == catalog.target_portals() == catalog.target_initiators() == []


def test_an_upgrade_that_fails_leaves_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "old.db"
    path.write_bytes(gzip.decompress(VERSION_1.read_bytes()))
    half = {**catalog_schema.UPGRADES, 1: "ALTER TABLE vm ADD COLUMN compression TEXT; ALTER TABLE none ADD COLUMN dedup TEXT;"}
    with monkeypatch.context() as patched:
        patched.setattr(catalog_schema, "UPGRADES", half)
        with pytest.raises(MediumError):
            Catalog(path)
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA user_version").fetchone() == (1,)
    assert "compression" not in [row[1] for row in database.execute("PRAGMA table_info(vm)")]
    database.close()
    opened = Catalog(path)
    assert len(opened.vms()) == 2
    opened.close()


def test_another_programs_database_is_refused_and_left_alone(catalog_path: str) -> None:
    database = sqlite3.connect(catalog_path)
    database.execute("CREATE TABLE theirs (x)")
    database.close()
    with open(catalog_path, "rb") as file:
        before = file.read()
    with pytest.raises(UnknownFormat, match="not a blockdev catalog"):
        Catalog(catalog_path)
    with open(catalog_path, "rb") as file:
        assert file.read() == before


@pytest.mark.parametrize(
    "content", [b"hello, this is a text of some length\n" * 30, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_a_file_that_is_no_database_is_refused_and_left_alone(catalog_path: str, content: bytes) -> None:
    with open(catalog_path, "wb") as file:
        file.write(content)
    with pytest.raises((Corrupt, UnknownFormat, MediumError), match=r"catalog\.db"):
        Catalog(catalog_path)
    with open(catalog_path, "rb") as file:
        assert file.read() == content


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(MediumError, match="cannot open"):
        Catalog(os.path.join(tmp_path, "no", "such", "directory", "catalog.db"))


def test_one_process_at_a_time_has_it(catalog: Catalog, catalog_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_schema, "BUSY_SECONDS_MAX", 0.05)
    with pytest.raises(Busy, match="in use by another process"):
        Catalog(catalog_path)
    other = sqlite3.connect(catalog_path, isolation_level=None, timeout=0.05)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("SELECT * FROM vm")
    other.close()
    with catalog.transaction():
        catalog.insert_vm(UUID, "web", NOW)
    catalog.close()
    Catalog(catalog_path).close()


def config_texts(catalog: Catalog) -> list[str]:
    return sorted(row[0] for row in catalog._database.execute("SELECT text FROM config"))


def test_equal_configurations_are_kept_once_and_unused_ones_not_at_all(catalog: Catalog) -> None:
    with catalog.transaction():
        first = catalog.insert_vm(UUID, "a", NOW, config="<x/>")
        second = catalog.insert_vm(OTHER_UUID, "b", NOW, config="<x/>")
        snapshot = catalog.insert_snapshot(first, "s", NOW, 1)
    assert config_texts(catalog) == ["<x/>"]
    with catalog.transaction():
        catalog.set_config(first, "<y/>")
        catalog.set_config(second, "<z/>")
    assert config_texts(catalog) == ["<x/>", "<y/>", "<z/>"]
    with catalog.transaction():
        catalog.use_config_of_snapshot(second, snapshot)
    assert config_texts(catalog) == ["<x/>", "<y/>"]
    with catalog.transaction():
        catalog.delete_snapshot(snapshot)
        catalog.delete_vm(second)
    assert config_texts(catalog) == ["<y/>"]
    with catalog.transaction():
        catalog.delete_vm(first)
    assert config_texts(catalog) == []


def test_deleting_a_vm_takes_all_its_rows(catalog: Catalog) -> None:
    with catalog.transaction():
        vm = catalog.insert_vm(UUID, "a", NOW)
        catalog.put_disk(vm, "root", 1, 512, NOW)
        snapshot = catalog.insert_snapshot(vm, "s", NOW, 5)
        catalog.put_snapshot_disk(snapshot, "root", 2, 512)
        catalog.insert_import(vm, "more", 3, 512, True, NOW)
        catalog.delete_vm(vm)
    assert (catalog.disks(), catalog.snapshots(), catalog.snapshot_disks_of_vm(), catalog.imports()) == (
        [],
        [],
        [],
        [],
    )


def test_many_threads_write_and_read_at_once(catalog: Catalog) -> None:
    errors: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for number in range(10):
                with catalog.transaction():
                    vm = catalog.insert_vm(f"u{thread}.{number}", f"vm{thread}.{number}", NOW)
                    catalog.put_disk(vm, "root", thread * 1000 + number + 1, 512, NOW)
                assert len(catalog.disks(vm)) == 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert catalog.vm_count() == catalog.disk_count() == 80
