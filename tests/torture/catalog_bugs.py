"""Bugs of the control plane that can be planted in a worker: each breaks one promise, and the power cuts must catch it.

They are patches of the real thing: the control plane has no place for them, as the engine has in its torture build.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from blockdev import _medium
from blockdev.engine.client import EngineClient
from blockdev.engine.protocol import EngineObject
from blockdev.vmmap import agreement
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.intents import KINDS, Intent
from blockdev.vmmap.journal import Journal
from blockdev.vmmap.receipts import ReceiptOperations
from blockdev.vmmap.reserve import Reserve
from tests.torture.catalog_medium import RecordingVFS


def _commits_are_not_synced() -> None:
    RecordingVFS._sync = lambda _self, _file, _flags: 0  # type: ignore[method-assign]


def _transactions_are_not_atomic() -> None:
    @contextmanager
    def transaction(_self: Catalog, grows: bool = False) -> Iterator[None]:
        yield

    def do(self: Catalog, statement: str, *values: Any) -> int:
        return self._database.execute(statement, values).lastrowid or 0

    Catalog.transaction, Catalog._do = transaction, do  # type: ignore[method-assign, assignment]


def _intents_are_not_written() -> None:
    Catalog.insert_intent = lambda _self, _kind, _body: 0  # type: ignore[method-assign]


def _what_was_done_is_taken_for_undone() -> None:
    for kind in KINDS.values():
        kind.evidence = lambda _self, _view: None  # type: ignore[method-assign]


def _what_was_not_done_is_taken_for_done() -> None:
    for kind in KINDS.values():
        if kind.frees:
            kind.evidence = lambda _self, _view: []  # type: ignore[method-assign]


def _temporary_objects_are_kept() -> None:
    agreement._drop_temporary = lambda *_what: None  # type: ignore[assignment]


def _the_catalog_deletes_first() -> None:
    whole = Journal.run

    def run(self: Journal, intent: Intent, apply: Callable[[], list[EngineObject] | None]) -> None:
        if intent.frees:
            self.finish(intent)
            apply()
        else:
            whole(self, intent, apply)

    Journal.run = run  # type: ignore[method-assign]


def _names_are_given_one_by_one() -> None:
    together = EngineClient.relabel

    def relabel(self: EngineClient, changes: Sequence[tuple[int, str | None, bytes]], force: bool = False) -> None:
        for change in changes:
            together(self, [change], force)

    EngineClient.relabel = relabel  # type: ignore[method-assign]


def _clones_are_made_one_by_one() -> None:
    together = EngineClient.clone

    def clone(self: EngineClient, clones: Sequence[tuple[int, str | None, bytes]]) -> list[EngineObject]:
        return [made for one in clones for made in together(self, [one])]

    EngineClient.clone = clone  # type: ignore[method-assign]


def _the_log_is_put_aside_before_it_is_in_the_database() -> None:
    Reserve.put_aside = lambda self, _database: _medium.rename_file(self._log, self._aside)  # type: ignore[method-assign]


def _receipts_are_noted_before_they_are_durable() -> None:
    ReceiptOperations.make_receipt_durable = lambda _self, _receipt: None  # type: ignore[method-assign]


def _receipts_are_dropped_at_each_start() -> None:
    agreement._receiving = lambda _catalog, _view: set()  # type: ignore[assignment]


CATALOG_BUGS: dict[str, Callable[[], None]] = {
    bug.__name__.removeprefix("_"): bug
    for bug in (
        _commits_are_not_synced,
        _transactions_are_not_atomic,
        _intents_are_not_written,
        _what_was_done_is_taken_for_undone,
        _what_was_not_done_is_taken_for_done,
        _temporary_objects_are_kept,
        _the_catalog_deletes_first,
        _names_are_given_one_by_one,
        _clones_are_made_one_by_one,
        _the_log_is_put_aside_before_it_is_in_the_database,
        _receipts_are_noted_before_they_are_durable,
        _receipts_are_dropped_at_each_start,
    )
}
