"""Either process dies at each step of each operation: afterwards it was done as a whole or not at all.

What was acknowledged is there; catalog and pool say the same; nothing that a user was told exists is gone.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from blockdev import Pool
from blockdev.engine.attachments import Attachments
from blockdev.engine.client import EngineClient
from blockdev.engine.server import EngineServer
from blockdev.errors import Unavailable
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.intents import KINDS
from blockdev.vmmap.operation import Operations
from blockdev.vmmap.service import VMs
from tests.child import DIED_AS_TOLD, Child, Say, die_at
from tests.vmmap import receiving, world
from tests.vmmap.receiving import ALL_OPERATIONS, build_receiving
from tests.vmmap.world import (
    Clock,
    Observation,
    check_agreed,
    observe,
    without_automatic_snapshots,
)

ENGINE_CHANGES = {
    "create a VM": ["create"],
    "create a VM with a policy": ["create", "set_disk_policies"],
    "set a policy": ["set_disk_policies"],
    "rename a VM": ["relabel"],
    "delete a VM": ["delete"],
    "add a disk": ["create", "set_disk_policies"],
    "remove a disk": ["delete"],
    "remove a disk that is imported into": ["create", "set_disk_policies", "delete"],
    "delete a VM that is imported into": ["create", "set_disk_policies", "delete"],
    "grow a disk": ["resize"],
    "create a snapshot": ["snapshot"],
    "create a snapshot with terms": ["snapshot"],
    "expire snapshots": ["delete"],
    "delete a snapshot": ["delete"],
    "clone what runs": ["snapshot", "clone", "set_disk_policies"],
    "clone with seeds": ["create", "clone", "relabel", "set_disk_policies"],
    "clone what runs with seeds": ["snapshot", "create", "clone", "relabel", "set_disk_policies"],
    "restore a disk beside": ["clone", "set_disk_policies"],
    "restore a VM with a disk that is gone": ["snapshot", "clone", "relabel", "set_disk_policies", "delete"],
    "import over a disk": ["create", "set_disk_policies", "relabel", "delete"],
    "import a snapshot": ["clone", "create", "resize", "set_disk_policies", "snapshot", "relabel", "delete"],
    "import a VM with a snapshot": ["create", "snapshot", "relabel"],
    "give up an import of a snapshot": ["clone", "create", "resize", "set_disk_policies", "delete"],
    "give up an import": ["create", "set_disk_policies", "delete"],
    "begin to receive a VM": ["create"],
    "begin to receive a snapshot": ["clone"],
    "begin to receive a snapshot anew": ["delete", "clone"],
    "receive a snapshot": ["snapshot", "relabel", "delete"],
    "receive a VM": ["snapshot", "relabel", "delete"],
    "receive a copy": ["snapshot", "relabel"],
    "clone for a peer": ["clone"],
    "drop a receipt": ["delete"],
    "forget a peer": ["delete"],
    "promote a VM": ["clone", "relabel", "delete"],
    "demote a VM": ["snapshot", "delete"],
    "delete a received VM": ["delete"],
}
ELSEWHERE = {
    *("set_pool_capacity", "set_pool_policy"),  # one record of the pool, and nothing of it in the catalog
    *("begin_registration", "begin_unregistration"),  # libvirt has a part in them: tests/hypervisor/test_crash.py
}


class Home:
    """Where one pool and its catalog are."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.pool = os.path.join(path, "pool")
        self.catalog = os.path.join(path, "catalog.db")
        self.socket = os.path.join(path, "engine.sock")


@contextmanager
def control_plane(home: Home, at_step: object = None) -> Iterator[tuple[VMs, Catalog, EngineClient]]:
    """In this process, on whichever engine answers."""
    catalog, engine = Catalog(home.catalog), EngineClient(home.socket)
    yield VMs(catalog, engine, clock=Clock(), at_step=at_step), catalog, engine  # type: ignore[arg-type]
    engine.close()
    catalog.close()


@contextmanager
def engine_of(home: Home) -> Iterator[Pool]:
    """In this process."""
    with Pool.open(home.pool) as pool:
        server = EngineServer(pool, Attachments(), home.socket)
        server.start()
        yield pool
        server.stop()


@pytest.fixture(scope="module")
def template() -> Iterator[Home]:
    """The world that each case gets a copy of."""
    with tempfile.TemporaryDirectory(prefix="bd-") as directory:
        home = Home(directory)
        Pool.create(home.pool, 64 << 20, segment_bytes=1 << 20).close()
        with engine_of(home) as pool, control_plane(home) as (vms, _, _):
            build_receiving(vms, pool)
        yield home


@pytest.fixture
def home(template: Home) -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="bd-") as directory:
        shutil.copytree(template.path, directory, dirs_exist_ok=True)
        yield Home(directory)


@pytest.fixture(scope="module")
def before(template: Home) -> Observation:
    with engine_of(template) as pool, control_plane(template) as (vms, _, _):
        return observe(vms, pool)


@pytest.fixture(scope="module")
def outcomes(template: Home) -> dict[str, tuple[list[Observation], list[str]]]:
    """What each operation leads to when nobody dies, after each of its records, and its steps."""
    found = {}
    for operation, perform in ALL_OPERATIONS.items():
        with tempfile.TemporaryDirectory(prefix="bd-") as directory:
            shutil.copytree(template.path, directory, dirs_exist_ok=True)
            found[operation] = _outcome(Home(directory), perform)
    return found


def _outcome(home: Home, perform: Callable[[VMs], object]) -> tuple[list[Observation], list[str]]:
    states: list[Observation] = []
    steps: list[str] = []

    def note(step: str) -> None:
        steps.append(step)
        if step.endswith(":finished"):
            states.append(observe(vms, pool))

    with engine_of(home) as pool, control_plane(home, note) as (vms, catalog, engine):
        perform(vms)
        check_agreed(vms, catalog, engine)
        return [*states, observe(vms, pool)], steps


def test_every_operation_that_changes_something_is_here(outcomes: dict[str, tuple[list[Observation], list[str]]]) -> None:
    """All of them are wrapped in that module, by `change`, and write down one of the kinds of intents, or none."""
    methods = inspect.getmembers(VMs, inspect.isfunction)
    wrapped = {name for name, method in methods if method.__code__.co_filename == inspect.getsourcefile(Operations)}
    changes = {name for name in wrapped if not name.startswith("_")}
    assert {"create_vm", "restore", "clone_many", "finish_copy", "forget_peer"} <= changes
    performed = set(re.findall(r"vms\.(\w+)\(", inspect.getsource(world) + inspect.getsource(receiving)))
    assert changes - performed == ELSEWHERE
    begun = {step.partition(":")[0] for _states, steps in outcomes.values() for step in steps}
    assert set(KINDS) - begun == set()
    assert {operation for operation in ENGINE_CHANGES if operation not in ALL_OPERATIONS} == set()


def run_control(home: Home, operation: str, step: str) -> bool:
    """Do it in another process that dies at `step`; whether it was acknowledged."""

    def work(say: Say) -> None:
        with control_plane(home, die_at(step)) as (vms, _, _):
            vms.reconcile()
            ALL_OPERATIONS[operation](vms)
            say("done")

    child = Child(work)
    said = child.hear()
    assert child.wait() == (0 if said else DIED_AS_TOLD)
    child.close()
    return said == "done"


def check_all_or_none(states: list[Observation], seen: Observation, before: Observation, acknowledged: bool) -> None:
    if acknowledged:
        assert seen == states[-1]
    else:
        assert seen in (before, *states) or without_automatic_snapshots(seen) == before


@pytest.mark.parametrize("operation", ALL_OPERATIONS)
def test_the_control_plane_dies_at_each_step(
    operation: str, template: Home, before: Observation, outcomes: dict[str, tuple[list[Observation], list[str]]]
) -> None:
    states, steps = outcomes[operation]
    own_steps = [step for step in dict.fromkeys(steps) if not step.startswith("agree:")]
    for step in [*own_steps, "never"]:
        with tempfile.TemporaryDirectory(prefix="bd-") as directory:
            shutil.copytree(template.path, directory, dirs_exist_ok=True)
            home = Home(directory)
            with engine_of(home) as pool:
                acknowledged = run_control(home, operation, step)
                assert acknowledged == (step == "never"), step
                with control_plane(home) as (vms, catalog, engine):
                    vms.reconcile()
                    check_agreed(vms, catalog, engine)
                    check_all_or_none(states, observe(vms, pool), before, acknowledged)


@pytest.mark.parametrize("step", ["clone:intended", "clone:applied", "clone:finished"])
def test_a_clone_that_a_peer_had_made_is_never_there_without_counting_as_the_peers(home: Home, step: str) -> None:
    with engine_of(home) as pool:
        assert not run_control(home, "clone for a peer", step)
        with control_plane(home) as (vms, _, _):
            vms.reconcile()
            seen = observe(vms, pool)
            assert seen.get("theirs", {"made_for": "east"})["made_for"] == "east"
            assert ("theirs" in seen) == (step != "clone:intended")


@pytest.mark.parametrize("again", ["agree:settled", "agree:dropped", "agree:labelled", "agree:followed", "agree:policies_given"])
@pytest.mark.parametrize(
    "step",
    ["restore:cloned", "restore:applied", "clone:cloned", "clone:applied", "begin_import:applied"]
    + ["begin_copy:applied", "finish_copy:taken", "finish_copy:applied", "finish_copy:finished"],
)
def test_the_control_plane_dies_again_while_it_agrees(
    home: Home,
    before: Observation,
    outcomes: dict[str, tuple[list[Observation], list[str]]],
    step: str,
    again: str,
) -> None:
    operation = {
        "restore": "restore a VM with a disk that is gone",
        "clone": "clone with seeds",
        "begin_import": "import over a disk",
        "begin_copy": "begin to receive a snapshot",
        "finish_copy": "receive a snapshot",
    }[step.split(":")[0]]
    with engine_of(home) as pool:
        assert not run_control(home, operation, step)
        assert not run_control(home, operation, again)
        with control_plane(home) as (vms, catalog, engine):
            vms.reconcile()
            check_agreed(vms, catalog, engine)
            check_all_or_none(outcomes[operation][0], observe(vms, pool), before, acknowledged=False)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("operation", "change"),
    [(name, change) for name, changes in ENGINE_CHANGES.items() for change in changes],
)
def test_the_engine_dies_before_and_after_its_step(
    home: Home,
    before: Observation,
    outcomes: dict[str, tuple[list[Observation], list[str]]],
    operation: str,
    change: str,
    when: str,
) -> None:
    """The control plane lives on, and is told of no success."""
    dying = Child(lambda say: serve(home, say, die_at(f"{change}:{when}")))
    assert dying.hear() == "ready"
    with control_plane(home) as (vms, catalog, engine):
        acknowledged = True
        try:
            ALL_OPERATIONS[operation](vms)
        except Unavailable:
            acknowledged = False
        # what a replacement or a copy left over is deleted later when the engine is away
        leaves = operation.startswith(("restore", "import", "give up an import of", "receive", "promote"))
        assert acknowledged == (change == "delete" and leaves)
        assert dying.wait() == DIED_AS_TOLD
        dying.close()
        with engine_of(home) as pool:
            vms.set_description("spare", "the next change agrees first")
            vms.set_description("spare", "")
            check_agreed(vms, catalog, engine)
            check_all_or_none(outcomes[operation][0], observe(vms, pool), before, acknowledged)


def serve(home: Home, say: Say, at_step: Callable[[str], None]) -> None:
    """An engine, for a process of its own."""
    with Pool.open(home.pool) as pool:
        EngineServer(pool, Attachments(), home.socket, at_step=at_step).start()
        say("ready")
        threading.Event().wait()
