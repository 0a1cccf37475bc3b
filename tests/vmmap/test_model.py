"""Random VM operations against a plain model, with control planes and engines that die on the way."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from blockdev import Pool
from blockdev.engine.attachments import Attachments
from blockdev.engine.client import EngineClient
from blockdev.engine.server import EngineServer
from blockdev.policies import COMPRESSIONS, DEDUPS, DiskPolicy
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.service import VMs
from tests.vmmap.world import Clock, check_agreed, observe, without_automatic_snapshots, write

VM_NAMES = st.sampled_from(["a", "b", "c", "d"])
DISK_NAMES = st.sampled_from(["root", "data", "x"])
SNAPSHOT_NAMES = st.sampled_from(["s1", "s2", "s3"])
SIZES = st.sampled_from([4096, 8192, 1 << 20])
POLICIES = st.fixed_dictionaries(
    {"compression": st.sampled_from([None, *COMPRESSIONS]), "dedup": st.sampled_from([None, *DEDUPS])}
)
Model = dict[str, dict[str, Any]]


def with_disks_policies(model: Model) -> Model:
    """Each disk has its VM's policy."""
    return {
        name: {**vm, "policies": dict.fromkeys(vm["disks"], DiskPolicy(**vm["policy"]))}
        for name, vm in model.items()
    }


class Died(BaseException):
    """Where a control plane's process ends."""


class VMMachine(RuleBasedStateMachine):
    """What was acknowledged is there; what was not is there as a whole or not at all."""

    @initialize()
    def begin(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="bd-")
        self.clock = Clock()
        self.model: Model = {}
        self.steps_left = -1  # until the control plane dies; negative: it lives
        self.number = 0
        Pool.create(f"{self.directory}/pool", 64 << 20, segment_bytes=1 << 20).close()
        self.open_engine()
        self.open_control()

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.steps_left = -1
            check_agreed(self.vms, self.catalog, self.engine)
            self.close_control()
            self.close_engine()
            shutil.rmtree(self.directory)

    def open_engine(self) -> None:
        self.pool = Pool.open(f"{self.directory}/pool", dedup_bytes=1 << 20, background=False)
        self.server = EngineServer(self.pool, Attachments(), f"{self.directory}/sock")
        self.server.start()

    def close_engine(self) -> None:
        self.server.stop()
        self.pool.close()

    def open_control(self) -> None:
        self.catalog = Catalog(f"{self.directory}/catalog.db")
        self.engine = EngineClient(f"{self.directory}/sock")
        self.vms = VMs(self.catalog, self.engine, clock=self.clock, at_step=self.at_step)

    def close_control(self) -> None:
        self.engine.close()
        self.catalog.close()

    def at_step(self, step: str) -> None:
        if self.steps_left == 0:
            raise Died(step)
        self.steps_left -= 1

    def change(self, real: Callable[[VMs], object], modelled: Callable[[Model], object]) -> None:
        """Do it in both worlds; where the control plane dies, either outcome will do."""
        after = copy.deepcopy(self.model)
        modelled(after)
        try:
            real(self.vms)
        except Died:
            self.steps_left = -1
            self.close_control()
            self.open_control()
            self.vms.reconcile()
            seen = without_automatic_snapshots(observe(self.vms, self.pool))
            assert seen in (with_disks_policies(self.model), with_disks_policies(after))
            self.model = seen
            return
        self.steps_left = -1
        self.model = after
        seen = without_automatic_snapshots(observe(self.vms, self.pool))
        assert seen == with_disks_policies(self.model)

    @rule(steps=st.integers(0, 8))
    def die_soon(self, steps: int) -> None:
        self.steps_left = steps

    @rule()
    def restart_the_engine(self) -> None:
        self.close_engine()
        self.open_engine()

    @rule()
    def agree(self) -> None:
        try:
            check_agreed(self.vms, self.catalog, self.engine)
        except Died:
            self.steps_left = -1
            self.close_control()
            self.open_control()

    @rule(
        name=VM_NAMES,
        disks=st.dictionaries(DISK_NAMES, SIZES, max_size=2),
        config=st.sampled_from(["", "<c/>"]),
        policy=POLICIES,
    )
    def create(self, name: str, disks: dict[str, int], config: str, policy: dict[str, Any]) -> None:
        if name in self.model:
            return
        made = {
            "description": "made",
            "config": config,
            "cloned_from": None,
            "agent": None,
            "policy": policy,
            "disks": {disk: (size, b"\0") for disk, size in disks.items()},
            "snapshots": {},
            "runs": [],
            "received": None,
            "made_for": None,
        }
        self.change(
            lambda vms: vms.create_vm(name, list(disks.items()), config, "made", DiskPolicy(**policy)),
            lambda model: model.update({name: made}),
        )

    @rule(name=VM_NAMES)
    def delete(self, name: str) -> None:
        if name in self.model:
            self.change(lambda vms: vms.delete_vm(name), lambda model: model.pop(name))

    @rule(name=VM_NAMES, new_name=VM_NAMES)
    def rename(self, name: str, new_name: str) -> None:
        if name in self.model and new_name not in self.model:
            self.change(
                lambda vms: vms.rename_vm(name, new_name),
                lambda model: model.update({new_name: model.pop(name)}),
            )

    @rule(name=VM_NAMES)
    def configure(self, name: str) -> None:
        if name in self.model:
            self.number += 1
            text = f"<c>{self.number}</c>"
            self.change(lambda vms: vms.set_config(name, text), lambda model: model[name].update(config=text))

    @rule(name=VM_NAMES, policy=POLICIES)
    def set_policy(self, name: str, policy: dict[str, Any]) -> None:
        if name in self.model:
            self.change(
                lambda vms: vms.set_policy(name, policy), lambda model: model[name].update(policy=policy)
            )

    @rule(name=VM_NAMES, disk=DISK_NAMES, size_bytes=SIZES)
    def add_disk(self, name: str, disk: str, size_bytes: int) -> None:
        if name in self.model and disk not in self.model[name]["disks"]:
            self.change(
                lambda vms: vms.add_disk(name, disk, size_bytes),
                lambda model: model[name]["disks"].update({disk: (size_bytes, b"\0")}),
            )

    @rule(name=VM_NAMES, disk=DISK_NAMES)
    def remove_disk(self, name: str, disk: str) -> None:
        if disk in self.model.get(name, {}).get("disks", {}):
            self.change(lambda vms: vms.remove_disk(name, disk), lambda model: model[name]["disks"].pop(disk))

    @rule(name=VM_NAMES, disk=DISK_NAMES, size_bytes=SIZES)
    def resize(self, name: str, disk: str, size_bytes: int) -> None:
        if disk in self.model.get(name, {}).get("disks", {}):
            content = self.model[name]["disks"][disk][1]
            self.change(
                lambda vms: vms.resize_disk(name, disk, size_bytes, force_shrink=True),
                lambda model: model[name]["disks"].update({disk: (size_bytes, content)}),
            )

    @rule(name=VM_NAMES, disk=DISK_NAMES)
    def write(self, name: str, disk: str) -> None:
        if disk in self.model.get(name, {}).get("disks", {}):
            self.number += 1
            byte = bytes([self.number % 255 + 1])
            write(self.pool, f"{name}/{disk}", byte)
            self.model[name]["disks"][disk] = (self.model[name]["disks"][disk][0], byte)

    @rule(name=VM_NAMES, snapshot=SNAPSHOT_NAMES)
    def take_snapshot(self, name: str, snapshot: str) -> None:
        vm = self.model.get(name)
        if vm is None or not vm["disks"] or snapshot in vm["snapshots"]:
            return
        taken = {
            "description": "d",
            "terms": ("manual", "crash", None, None, None),
            "achieved": ("crash", None),
            "config": vm["config"],
            "disks": dict(vm["disks"]),
        }
        self.change(
            lambda vms: vms.create_snapshot(name, snapshot, "d"),
            lambda model: model[name]["snapshots"].update({snapshot: taken}),
        )

    @rule(name=VM_NAMES, snapshot=SNAPSHOT_NAMES)
    def delete_snapshot(self, name: str, snapshot: str) -> None:
        if snapshot in self.model.get(name, {}).get("snapshots", {}):
            self.change(
                lambda vms: vms.delete_snapshot(name, snapshot),
                lambda model: model[name]["snapshots"].pop(snapshot),
            )

    @precondition(lambda self: any(vm["snapshots"] for vm in getattr(self, "model", {}).values()))
    @rule(name=VM_NAMES, snapshot=SNAPSHOT_NAMES, new_name=VM_NAMES)
    def clone(self, name: str, snapshot: str, new_name: str) -> None:
        if snapshot not in self.model.get(name, {}).get("snapshots", {}) or new_name in self.model:
            return
        source = self.model[name]["snapshots"][snapshot]
        made = {
            "description": "",
            "config": source["config"],
            "cloned_from": f"{name}@{snapshot}",
            "agent": None,
            "policy": self.model[name]["policy"],
            "disks": dict(source["disks"]),
            "snapshots": {},
            "runs": [],
            "received": None,
            "made_for": None,
        }
        self.change(
            lambda vms: vms.clone(name, snapshot, new_name), lambda model: model.update({new_name: made})
        )

    @precondition(lambda self: any(vm["snapshots"] for vm in getattr(self, "model", {}).values()))
    @rule(name=VM_NAMES, snapshot=SNAPSHOT_NAMES, one_disk=st.booleans())
    def restore(self, name: str, snapshot: str, one_disk: bool) -> None:
        if snapshot not in self.model.get(name, {}).get("snapshots", {}):
            return
        source = self.model[name]["snapshots"][snapshot]
        disk = min(source["disks"]) if one_disk else None

        def modelled(model: Model) -> None:
            disks = source["disks"] if disk is None else {disk: source["disks"][disk]}
            model[name]["disks"].update(disks)
            if disk is None:
                model[name]["config"] = source["config"]

        self.change(lambda vms: vms.restore(name, snapshot, disk), modelled)

    @rule(name=VM_NAMES, disk=DISK_NAMES, size_bytes=SIZES)
    def import_image(self, name: str, disk: str, size_bytes: int) -> None:
        if name not in self.model:
            return
        old = self.model[name]["disks"].get(disk)
        self.number += 1
        byte = bytes([self.number % 255 + 1])

        def real(vms: VMs) -> None:
            begun = vms.begin_import(name, disk, size_bytes, create=old is None)
            write(self.pool, begun.export, byte)
            vms.finish_import(begun.id)

        size = size_bytes if old is None else max(size_bytes, old[0])
        self.change(real, lambda model: model[name]["disks"].update({disk: (size, byte)}))


class TestVMs(VMMachine.TestCase):  # type: ignore[name-defined, misc]
    settings = settings(
        max_examples=max(1, settings.default.max_examples // 6),
        stateful_step_count=settings.default.stateful_step_count,
    )
