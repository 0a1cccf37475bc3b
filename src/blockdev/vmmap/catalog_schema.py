"""The tables of the catalog (docs/format/catalog.md), and how a file is opened as one or refused.

Durable: a committed transaction (WAL, synchronous=FULL).  One connection at a time: the database is locked, and the
index of its log is in memory, because the file that it would be in needs room on the disk at each start.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import uuid
from typing import Any

from blockdev.errors import BlockdevError, Busy, Corrupt, MediumError, UnknownFormat
from blockdev.vmmap.machine import without_passwords
from blockdev.vmmap.reserve import full

APPLICATION_ID = 0x42444341  # "BDCA"
SCHEMA_VERSION = 7
BUSY_SECONDS_MAX = 5.0
SECURE_DELETE = "PRAGMA secure_delete = FAST"  # Debian's default writes every page that a deletion frees

SCHEMA = """
CREATE TABLE setting (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE config (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    text TEXT NOT NULL
) STRICT;

CREATE TABLE vm (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL,
    created TEXT NOT NULL,
    cloned_from TEXT,
    config_id INTEGER NOT NULL REFERENCES config (id),
    compression TEXT,
    dedup TEXT,
    own_schedules INTEGER NOT NULL DEFAULT 0,
    agent TEXT
) STRICT;
CREATE INDEX vm_config ON vm (config_id);

CREATE TABLE disk (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    vm_id INTEGER NOT NULL REFERENCES vm (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    object_id INTEGER UNIQUE,
    size_bytes INTEGER NOT NULL CHECK (size_bytes > 0 AND size_bytes % 512 = 0),
    created TEXT NOT NULL,
    UNIQUE (vm_id, name)
) STRICT;
CREATE INDEX disk_missing ON disk (id) WHERE object_id IS NULL;

CREATE TABLE snapshot (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    vm_id INTEGER NOT NULL REFERENCES vm (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    created TEXT NOT NULL,
    lsn INTEGER NOT NULL,
    consistency TEXT NOT NULL,
    origin TEXT NOT NULL,
    config_id INTEGER NOT NULL REFERENCES config (id),
    asked TEXT NOT NULL DEFAULT 'crash',
    frozen_ms INTEGER,
    expires TEXT,
    locked_until TEXT,
    schedule TEXT,
    due TEXT,
    uuid TEXT NOT NULL DEFAULT '',
    changed_bytes INTEGER,
    UNIQUE (vm_id, name)
) STRICT;
CREATE INDEX snapshot_config ON snapshot (config_id);

CREATE TABLE snapshot_disk (
    id INTEGER PRIMARY KEY,
    snapshot_id INTEGER NOT NULL REFERENCES snapshot (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    object_id INTEGER UNIQUE,
    size_bytes INTEGER NOT NULL,
    digest BLOB,
    UNIQUE (snapshot_id, name)
) STRICT;
CREATE INDEX snapshot_disk_missing ON snapshot_disk (id) WHERE object_id IS NULL;

CREATE TABLE import (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    vm_id INTEGER NOT NULL REFERENCES vm (id) ON DELETE CASCADE,
    disk TEXT NOT NULL,
    object_id INTEGER NOT NULL UNIQUE,
    size_bytes INTEGER NOT NULL,
    creates INTEGER NOT NULL,
    started TEXT NOT NULL,
    UNIQUE (vm_id, disk)
) STRICT;

CREATE TABLE intent (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;
"""

# what schedules need, and what was noted
SCHEDULE_TABLES = """
CREATE INDEX snapshot_expires ON snapshot (expires) WHERE expires IS NOT NULL;
CREATE INDEX snapshot_schedule ON snapshot (vm_id, schedule, lsn) WHERE schedule IS NOT NULL;

CREATE TABLE schedule (
    id INTEGER PRIMARY KEY,
    vm_id INTEGER REFERENCES vm (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (vm_id, name)
) STRICT;

CREATE TABLE schedule_run (
    vm_id INTEGER NOT NULL REFERENCES vm (id) ON DELETE CASCADE,
    schedule TEXT NOT NULL,
    handled TEXT NOT NULL,
    failures INTEGER NOT NULL,
    error TEXT,
    PRIMARY KEY (vm_id, schedule)
) STRICT, WITHOUT ROWID;

CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,
    level TEXT NOT NULL,
    kind TEXT NOT NULL,
    vm TEXT,
    message TEXT NOT NULL
) STRICT;
CREATE INDEX event_vm ON event (vm, id);
"""

# who may ask, what was asked, and where VMs run
OPERATION_TABLES = """
CREATE UNIQUE INDEX snapshot_uuid ON snapshot (uuid, vm_id);
CREATE INDEX snapshot_uncounted ON snapshot (lsn) WHERE changed_bytes IS NULL;

CREATE TABLE token (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL,
    digest BLOB NOT NULL UNIQUE,
    created TEXT NOT NULL,
    expires TEXT
) STRICT;

CREATE TABLE job (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    caller TEXT NOT NULL,
    state TEXT NOT NULL,
    created TEXT NOT NULL,
    finished TEXT,
    total_bytes INTEGER NOT NULL,
    done_bytes INTEGER NOT NULL,
    result TEXT,
    error_code TEXT,
    error_message TEXT
) STRICT;
CREATE INDEX job_unfinished ON job (number) WHERE finished IS NULL;

CREATE TABLE hypervisor (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    uri TEXT NOT NULL,
    at_once INTEGER NOT NULL,
    created TEXT NOT NULL
) STRICT;

CREATE TABLE domain (
    vm_id INTEGER PRIMARY KEY REFERENCES vm (id) ON DELETE CASCADE,
    hypervisor_id INTEGER NOT NULL REFERENCES hypervisor (id),
    uuid TEXT NOT NULL,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    made INTEGER NOT NULL,
    UNIQUE (hypervisor_id, uuid)
) STRICT;
"""

# whom VMs are replicated to and from, how far that is, and what has come of it
REPLICATION_TABLES = """
CREATE INDEX snapshot_vm ON snapshot (vm_id, lsn);

CREATE TABLE peer (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    key TEXT NOT NULL UNIQUE,
    vms TEXT NOT NULL,
    space_bytes INTEGER,
    created TEXT NOT NULL
) STRICT;

CREATE TABLE path (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    host TEXT NOT NULL,
    port INTEGER NOT NULL,
    key TEXT NOT NULL,
    level INTEGER NOT NULL,
    throttle TEXT NOT NULL,
    created TEXT NOT NULL
) STRICT;

CREATE TABLE protection (
    vm_id INTEGER NOT NULL REFERENCES vm (id) ON DELETE CASCADE,
    path_id INTEGER NOT NULL REFERENCES path (id),
    rpo_seconds INTEGER,
    keep_seconds INTEGER,
    paused INTEGER NOT NULL,
    from_lsn INTEGER NOT NULL,
    newest_uuid TEXT,
    newest_lsn INTEGER,
    newest_created TEXT,
    newest_finished TEXT,
    failures INTEGER NOT NULL,
    error_code TEXT,
    error_message TEXT,
    created TEXT NOT NULL,
    PRIMARY KEY (vm_id, path_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE received_vm (
    vm_id INTEGER PRIMARY KEY REFERENCES vm (id) ON DELETE CASCADE,
    peer_id INTEGER NOT NULL REFERENCES peer (id),
    rpo_seconds INTEGER,
    since TEXT NOT NULL,
    promoted TEXT
) STRICT;
CREATE INDEX received_vm_peer ON received_vm (peer_id);

CREATE TABLE made_vm (
    vm_id INTEGER PRIMARY KEY REFERENCES vm (id) ON DELETE CASCADE,
    peer_id INTEGER NOT NULL REFERENCES peer (id)
) STRICT;
CREATE INDEX made_vm_peer ON made_vm (peer_id);

CREATE TABLE receipt (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    peer_id INTEGER NOT NULL REFERENCES peer (id),
    purpose TEXT NOT NULL,
    vm_uuid TEXT NOT NULL,
    snapshot_uuid TEXT NOT NULL,
    name TEXT NOT NULL,
    vm_id INTEGER REFERENCES vm (id) ON DELETE CASCADE,
    body TEXT NOT NULL,
    data_bytes INTEGER NOT NULL,
    began TEXT NOT NULL,
    touched TEXT NOT NULL,
    UNIQUE (peer_id, purpose, vm_uuid, name, snapshot_uuid)
) STRICT;
CREATE INDEX receipt_vm ON receipt (vm_id) WHERE vm_id IS NOT NULL;

CREATE TABLE receipt_disk (
    receipt_id INTEGER NOT NULL REFERENCES receipt (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    object_id INTEGER NOT NULL UNIQUE,
    next_block INTEGER NOT NULL,
    PRIMARY KEY (receipt_id, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE transfer (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    direction TEXT NOT NULL,
    way TEXT NOT NULL,
    vm TEXT NOT NULL,
    vm_uuid TEXT NOT NULL,
    snapshot TEXT NOT NULL,
    snapshot_uuid TEXT NOT NULL,
    began TEXT NOT NULL,
    finished TEXT NOT NULL,
    logical_bytes INTEGER NOT NULL,
    network_bytes INTEGER NOT NULL,
    error_code TEXT,
    error_message TEXT
) STRICT;
CREATE INDEX transfer_vm ON transfer (vm_uuid, id);

CREATE TABLE replication_sample (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,
    direction TEXT NOT NULL,
    way TEXT NOT NULL,
    vm_uuid TEXT NOT NULL,
    logical_bytes INTEGER NOT NULL,
    network_bytes INTEGER NOT NULL,
    remaining_bytes INTEGER,
    lag_seconds INTEGER
) STRICT;
CREATE INDEX replication_sample_vm ON replication_sample (vm_uuid, id);
"""

# which VMs are offered over iSCSI, to whom, and under which LUN each disk is
TARGET_TABLES = """
CREATE TABLE target (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    vm_id INTEGER NOT NULL UNIQUE REFERENCES vm (id) ON DELETE CASCADE,
    iqn TEXT NOT NULL UNIQUE,
    demo INTEGER NOT NULL,
    depth INTEGER NOT NULL,
    chap_user TEXT,
    mutual_user TEXT,
    secrets TEXT,
    next_lun INTEGER NOT NULL,
    created TEXT NOT NULL
) STRICT;

CREATE TABLE target_portal (
    target_id INTEGER NOT NULL REFERENCES target (id) ON DELETE CASCADE,
    host TEXT NOT NULL,
    port INTEGER NOT NULL,
    PRIMARY KEY (target_id, host, port)
) STRICT, WITHOUT ROWID;

CREATE TABLE target_initiator (
    target_id INTEGER NOT NULL REFERENCES target (id) ON DELETE CASCADE,
    iqn TEXT NOT NULL,
    PRIMARY KEY (target_id, iqn)
) STRICT, WITHOUT ROWID;

CREATE TABLE target_lun (
    target_id INTEGER NOT NULL REFERENCES target (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    serial TEXT NOT NULL UNIQUE,
    disk_id INTEGER UNIQUE REFERENCES disk (id) ON DELETE CASCADE,
    snapshot_disk_id INTEGER UNIQUE REFERENCES snapshot_disk (id) ON DELETE CASCADE,
    PRIMARY KEY (target_id, number),
    CHECK ((disk_id IS NULL) <> (snapshot_disk_id IS NULL))
) STRICT, WITHOUT ROWID;
"""

# version -> what makes a catalog of it one of the next version
UPGRADES = {
    1: "ALTER TABLE vm ADD COLUMN compression TEXT; ALTER TABLE vm ADD COLUMN dedup TEXT;",
    2: "ALTER TABLE vm ADD COLUMN own_schedules INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE vm ADD COLUMN agent TEXT;"
    "ALTER TABLE snapshot ADD COLUMN asked TEXT NOT NULL DEFAULT 'crash';"
    "ALTER TABLE snapshot ADD COLUMN frozen_ms INTEGER;"
    "ALTER TABLE snapshot ADD COLUMN expires TEXT;"
    "ALTER TABLE snapshot ADD COLUMN locked_until TEXT;"
    "ALTER TABLE snapshot ADD COLUMN schedule TEXT;"
    "ALTER TABLE snapshot ADD COLUMN due TEXT;" + SCHEDULE_TABLES,
    3: "ALTER TABLE snapshot ADD COLUMN uuid TEXT NOT NULL DEFAULT '';"
    "ALTER TABLE snapshot ADD COLUMN changed_bytes INTEGER;"
    "UPDATE snapshot SET uuid = snapshot_uuid((SELECT uuid FROM vm WHERE id = vm_id), name, created);" + OPERATION_TABLES,
    # before, schedules did not replicate unless they said so, and it did nothing: a VM that is protected from now on would not be
    4: "UPDATE schedule SET body = json_set(body, '$.replicate', json('true'));"
    "ALTER TABLE snapshot_disk ADD COLUMN digest BLOB;" + REPLICATION_TABLES,
    5: TARGET_TABLES,
    # before, passwords of VNC and SPICE were kept; what is the same without them is one configuration from then on
    6: "CREATE TEMP TABLE kept (id INTEGER PRIMARY KEY, kept_id INTEGER NOT NULL);"
    "INSERT INTO kept SELECT id, min(id) OVER (PARTITION BY without_passwords(text)) FROM config;"
    "UPDATE vm SET config_id = (SELECT kept_id FROM kept WHERE id = config_id);"
    "UPDATE snapshot SET config_id = (SELECT kept_id FROM kept WHERE id = config_id);"
    "DELETE FROM config WHERE id NOT IN (SELECT kept_id FROM kept);"
    "UPDATE config SET text = without_passwords(text);"
    "UPDATE config SET digest = config_digest(text) WHERE digest <> config_digest(text);"
    "UPDATE intent SET body = body_without_passwords(body);"
    "UPDATE receipt SET body = body_without_passwords(body);"
    "DROP TABLE temp.kept;",
}


def snapshot_uuid(vm_uuid: str, name: str, created: str) -> str:
    """Which snapshot it is, wherever it is copied to: made of what the pool knows, so that a lost catalog loses it not."""
    return str(uuid.uuid5(uuid.UUID(vm_uuid), f"{name}@{created}"))


def config_digest(text: str) -> bytes:
    """By which equal configurations are found."""
    return hashlib.sha256(text.encode()).digest()


def _body_without_passwords(body: str) -> str:
    """Of an operation, or of a snapshot that comes, which may have a configuration with it."""
    fields: dict[str, Any] = json.loads(body)
    if isinstance(fields.get("config"), str):
        fields["config"] = without_passwords(fields["config"])
    return json.dumps(fields)


def open_database(path: str) -> sqlite3.Connection:
    """The catalog at `path`, made when there is none, and brought to this version when it is of an earlier one.

    UnknownFormat: another program's file or a later version; Corrupt; Busy; MediumError.
    """
    try:
        made = not os.path.exists(path)
        database = sqlite3.connect(
            path, timeout=BUSY_SECONDS_MAX, isolation_level=None, check_same_thread=False
        )
        if made:
            os.chmod(path, 0o600)  # configurations may hold what is nobody else's business
    except (sqlite3.Error, OSError) as error:
        raise MediumError(f"cannot open the catalog {path}: {error}") from error
    try:
        database.create_function("snapshot_uuid", 3, snapshot_uuid, deterministic=True)
        database.create_function("without_passwords", 1, without_passwords, deterministic=True)
        database.create_function("config_digest", 1, config_digest, deterministic=True)
        database.create_function("body_without_passwords", 1, _body_without_passwords, deterministic=True)
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA temp_store = MEMORY")
        database.execute(SECURE_DELETE)
        _check_format(database, path)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA foreign_keys = ON")
        _make_tables(database)
        _upgrade(database)
    except sqlite3.Error as error:
        database.close()
        raise database_error(error, path) from error
    except BlockdevError:
        database.close()
        raise
    return database


def _check_format(database: sqlite3.Connection, path: str) -> None:
    """UnknownFormat unless this is a catalog of this version or an earlier one, or an empty file."""
    application_id = _pragma(database, "application_id")
    version = _pragma(database, "user_version")
    is_empty = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
    if is_empty and application_id == 0 and version == 0:
        return
    if application_id != APPLICATION_ID:
        raise UnknownFormat(f"{path} is an SQLite database but not a blockdev catalog: move it away")
    if version not in (*UPGRADES, SCHEMA_VERSION):
        raise UnknownFormat(
            f"the catalog {path} has format version {version}; this build reads {min(UPGRADES)} to {SCHEMA_VERSION}: "
            "use the build that wrote it"
        )


def _make_tables(database: sqlite3.Connection) -> None:
    if _pragma(database, "application_id") == APPLICATION_ID:
        return
    database.executescript(
        f"BEGIN IMMEDIATE; {SCHEMA} {SCHEDULE_TABLES} {OPERATION_TABLES} {REPLICATION_TABLES} {TARGET_TABLES} "
        f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )


def _upgrade(database: sqlite3.Connection) -> None:
    """All the way to this version in one transaction."""
    steps = [UPGRADES[version] for version in range(_pragma(database, "user_version"), SCHEMA_VERSION)]
    if steps:
        database.execute("PRAGMA secure_delete = ON")  # what a step takes away is not to be found in the file
        database.executescript(
            f"BEGIN IMMEDIATE; {' '.join(steps)} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )
        database.execute(SECURE_DELETE)


def _pragma(database: sqlite3.Connection, name: str) -> int:
    return int(database.execute(f"PRAGMA {name}").fetchone()[0])


class Contradiction(MediumError):
    """Rows that the catalog's own rules forbid: two VMs of one uuid, say."""


def database_error(error: sqlite3.Error, path: str) -> BlockdevError:
    """What an error of SQLite means for a person."""
    if isinstance(error, sqlite3.IntegrityError):
        return Contradiction(f"the catalog {path} cannot hold that: {error}; this is a fault of blockdev, nothing was changed")
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Busy(f"the catalog {path} is in use by another process")
    if name.startswith("SQLITE_FULL"):
        return full(path)
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return Corrupt(
            f"the catalog {path} cannot be read: {error}; restore it from a backup, or move it away: "
            "VMs, disks and snapshots are then taken from the pool again, without configurations"
        )
    return MediumError(f"the catalog {path} cannot be written or read: {error}")
