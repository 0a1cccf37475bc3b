"""How an operation changes catalog and engine in step: intent, engine step (the commit point), catalog step.

What the engine step made gets its VM's policy before the catalog step: here, for all operations.
Locks: `lock` is held for a whole operation, so at most one intent is open; the catalog's lock is never held across an
engine step.  Whatever leaves an operation half done makes the next one agree with the pool first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence

from blockdev.engine.client import AnswerLost, EngineClient, EngineRestarted
from blockdev.engine.protocol import EngineObject
from blockdev.errors import (
    AlreadyExists,
    BlockdevError,
    Busy,
    Gone,
    InvalidArgument,
    NotFound,
    PoolFull,
    ReadOnly,
    Unavailable,
)
from blockdev.vmmap.agreement import agree
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.clock import Clock, to_text
from blockdev.vmmap.events import Events, Level, enumerate_some
from blockdev.vmmap.intents import Intent
from blockdev.vmmap.model import Agreement

REFUSALS = (InvalidArgument, NotFound, AlreadyExists, Busy, ReadOnly, PoolFull, Gone)


def was_refused(error: BlockdevError) -> bool:
    """Whether the engine did nothing: otherwise its step may have been done, and the pool must be asked."""
    if isinstance(error, Unavailable):
        return not isinstance(error, AnswerLost)
    return isinstance(error, REFUSALS)


def tell(agreement: Agreement, missed: Collection[str]) -> Iterator[tuple[Level, str]]:
    """What an agreement changed, as events.  missed: what was missing before it."""
    told: list[tuple[Level, str, Sequence[str]]] = [
        ("warning", "done when the control plane or the engine ended, and finished now", agreement.finished),
        ("warning", "not done when the control plane or the engine ended, and forgotten", agreement.undone),
        ("warning", "found in the pool and taken in", agreement.adopted),
        ("warning", "put right", agreement.corrected),
        ("info", "removed, as nobody will finish it", agreement.dropped),
        ("error", "missing from the pool", sorted(set(agreement.missing).difference(missed))),
    ]
    for level, what, names in told:
        if names:
            yield level, f"{what}: {enumerate_some(names)}"


class Journal:
    """The operations under way on one catalog and one engine."""

    def __init__(
        self,
        catalog: Catalog,
        engine: EngineClient,
        clock: Clock,
        at_step: Callable[[str], None],
        events: Events,
    ) -> None:
        self.lock = threading.RLock()
        self.agreed = False  # changes under lock, as what follows
        self.foreign: list[str] = []  # pool objects that are not of VMs, when last agreed
        self.at_step = at_step
        self._catalog = catalog
        self._engine = engine
        self._clock = clock
        self._events = events
        self._instance = b""  # the engine process that was agreed with
        self._live_imports: dict[int, bytes] = {}  # import id -> engine process that it began in
        self._live_temporaries: dict[int, bytes] = {}  # object id, of a copy under way, likewise

    def now(self) -> str:
        return to_text(self._clock())

    def agree(self) -> Agreement:
        """Bring catalog and engine into agreement (agreement.py)."""
        with self.lock:
            self.agreed = False
            missed = set(self._catalog.missing_exports())
            agreement, self._instance = agree(
                self._catalog,
                self._engine,
                self._live_imports,
                self._live_temporaries,
                self.now(),
                self.at_step,
            )
            going_on = {row.id for row in self._catalog.imports()}
            self._live_imports = {id: at for id, at in self._live_imports.items() if id in going_on}
            self._live_temporaries = {id: at for id, at in self._live_temporaries.items() if at == self._instance}
            self.foreign = agreement.foreign
            self.agreed = True
            for level, message in tell(agreement, missed):
                self._events.note(level, "agreement", None, message)
            return agreement

    def ensure_agreed(self) -> None:
        if not self.agreed:
            self.agree()

    def ensure_agreed_with(self, instance: bytes) -> None:
        """For what changes nothing in the engine, and so does not hear that it is another process by now."""
        if instance != self._instance:
            self.agree()

    def run(self, intent: Intent, apply: Callable[[], list[EngineObject] | None]) -> None:
        """One operation; `apply` is its engine step and returns what it made."""
        with self._catalog.transaction(grows=not intent.frees):
            intent_id = self._catalog.insert_intent(intent.kind, intent.body())
        is_whole = False
        try:
            self.at_step(f"{intent.kind}:intended")
            made = self._apply(intent_id, apply)
            self.at_step(f"{intent.kind}:applied")
            self._give_policy(intent, made)
            with self._catalog.transaction():
                intent.finish(self._catalog, made)
                self._catalog.delete_intent(intent_id)
            is_whole = True
        except EngineRefused as refusal:
            is_whole = not isinstance(refusal.error, EngineRestarted)
            raise refusal.error from None
        finally:
            if not is_whole:
                self.agreed = False
        self.at_step(f"{intent.kind}:finished")

    def _apply(self, intent_id: int, apply: Callable[[], list[EngineObject] | None]) -> list[EngineObject]:
        try:
            return apply() or []
        except BlockdevError as error:
            if not was_refused(error):
                raise
            with self._catalog.transaction():
                self._catalog.delete_intent(intent_id)
            raise EngineRefused(error) from error

    def _give_policy(self, intent: Intent, made: list[EngineObject]) -> None:
        """New vdisks get their VM's policy; if that fails, by the next agreement, as the engine step is done."""
        policy = intent.policy(self._catalog)
        others = [(thing.id, policy) for thing in made if thing.policy != policy]
        if not others:
            return
        try:
            self._engine.set_disk_policies(others)
        except EngineRestarted as error:  # whoever meets it does the operation again, which would be twice
            raise AnswerLost(f"the engine was restarted during: {intent}") from error
        self.at_step(f"{intent.kind}:policy_given")

    def finish(self, intent: Intent) -> None:
        """An operation that needs nothing of the engine."""
        with self._catalog.transaction(grows=not intent.frees):
            intent.finish(self._catalog, [])

    def drop(self, object_ids: Sequence[int]) -> None:
        """Delete temporary objects; if that fails, the next agreement does it."""
        try:
            self._engine.delete(object_ids, force=True, missing_ok=True)
        except BlockdevError:
            self.agreed = False

    def keep_import(self, import_id: int) -> None:
        """The import goes on for as long as this control plane and this engine process do."""
        self._live_imports[import_id] = self._instance

    def forget_import(self, import_id: int) -> None:
        """It has ended, or is to be dropped by the next agreement if it has not."""
        self._live_imports.pop(import_id, None)

    def keep_temporaries(self, object_ids: Sequence[int]) -> None:
        """They stay for as long as this control plane and this engine process do, or until they are forgotten."""
        self._live_temporaries.update(dict.fromkeys(object_ids, self._instance))

    def has_temporaries(self, object_ids: Sequence[int]) -> bool:
        return all(id in self._live_temporaries for id in object_ids)

    def forget_temporaries(self, object_ids: Sequence[int]) -> None:
        """They have become something, or are to be dropped by the next agreement if they have not been."""
        for id in object_ids:
            self._live_temporaries.pop(id, None)


class EngineRefused(Exception):
    """The engine step did nothing; its intent is gone."""

    def __init__(self, error: BlockdevError) -> None:
        super().__init__(error)
        self.error = error
