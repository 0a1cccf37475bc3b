"""LIO brought to what is wanted, on a real kernel and RAM disks (brd): run in the lab guest by test_lio.py; an exception is a failure.

The foreign target and backstore are made first and must be as they were at the end.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from blockdev.targets.lio import (
    CONFIGFS,
    CORE,
    ISCSI,
    KEPT_THERE,
    NO_SECRET,
    OBJECT_ATTRIBUTES,
    Lio,
    LunSpec,
    Outcome,
    Secret,
    TargetSpec,
)
from rtslib_fb import LUN as KernelLun
from rtslib_fb import TPG, BlockStorageObject, FabricModule, NetworkPortal, NodeACL, Target

from blockdev.addresses import listen

IQNS, OBJECTS = "iqn.2026-11.io.blockdev:aaaaaaaa:", "blockdev-aaaaaaaa-"
INITIATOR, OTHER = "iqn.1993-08.org.debian:01:a1", "iqn.1993-08.org.debian:01:b2"
FOREIGN = "iqn.2003-01.org.example:foreign"
CHAP, MUTUAL = Secret("me", "topsecret12345"), Secret("them", "othersecret12345")


def lun(number: int, disk: int, read_only: bool = False) -> LunSpec:
    serial = str(uuid.uuid5(uuid.NAMESPACE_DNS, str(disk)))
    return LunSpec(number, OBJECTS + serial, serial, f"/dev/ram{disk}", read_only)


WEB = TargetSpec(
    *(f"{IQNS}web.12345678", (lun(0, 0), lun(3, 1, True)), (INITIATOR,), (("127.0.0.1", 3260), ("::1", 3261)), False, 32),
    *(CHAP, MUTUAL),
)
DB = TargetSpec(f"{IQNS}db.12345678", (lun(0, 2),), (), (("127.0.0.1", 3260),), True, 64)


def group_of(spec: TargetSpec) -> TPG:
    return TPG(Target(FabricModule("iscsi"), spec.iqn, "lookup"), 1, "lookup")


def content(directory: Path) -> dict[str, str]:
    """What a part of configfs holds, by path."""
    found = {}
    for above, names, files in os.walk(directory):
        for name in [*names, *files]:
            path = Path(above, name)
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            elif path.is_file() and "statistics" not in above and name != "info":
                try:
                    found[str(path)] = path.read_text(errors="replace")
                except OSError as error:
                    found[str(path)] = str(error.errno)
    return found


def bring(lio: Lio, *specs: TargetSpec, looks: bool = True) -> Outcome:
    done = lio.bring(specs, looks)
    assert not any(done.troubles.values()), done
    return done


def make_foreign() -> None:
    thing = BlockStorageObject("foreign", dev="/dev/ram7", wwn=str(uuid.uuid4()))
    group = TPG(Target(FabricModule("iscsi"), FOREIGN), 1)
    KernelLun(group, 0, thing)
    NetworkPortal(group, "127.0.0.1", 3260)
    group.enable = True


def check_made(lio: Lio) -> None:
    assert bring(lio, WEB, DB).changes
    group = group_of(WEB)
    assert group.enable and group.get_attribute("authentication") == "1" and group.get_attribute("generate_node_acls") == "0"
    assert {(one.ip_address, one.port) for one in group.network_portals} == {("127.0.0.1", 3260), ("[::1]", 3261)}
    [acl] = group.node_acls
    assert (acl.node_wwn, acl.chap_userid, acl.chap_mutual_userid, acl.tcq_depth) == (INITIATOR, "me", "them", "32")
    assert {(one.mapped_lun, one.write_protect) for one in acl.mapped_luns} == {(0, False), (3, True)}
    things = {one.lun: one.storage_object for one in group.luns}
    assert [things[number].wwn for number in (0, 3)] == [one.serial for one in WEB.luns]
    assert (things[0].readonly, things[3].readonly) == (False, True)
    assert [Path(things[0].path, "wwn", name).read_text().strip() for name in ("vendor_id", "product_id")] == ["BLOCKDEV", "vdisk"]
    for name, value in OBJECT_ATTRIBUTES.items():
        assert things[0].get_attribute(name) == str(value), name
    assert group_of(DB).get_attribute("generate_node_acls") == "1" and list(group_of(DB).node_acls) == []
    assert not bring(lio, WEB, DB).changes, "there was nothing to do"


def by_hand() -> list[tuple[str, Callable[[], object]]]:
    """What somebody may do to a target of ours."""
    group = group_of(WEB)
    return [
        ("closed", lambda: setattr(group, "enable", False)),
        ("an initiator shut out", lambda: next(group.node_acls).delete()),
        ("an initiator let in", lambda: NodeACL(group, OTHER)),
        ("a LUN removed", lambda: KernelLun(group, 0).delete()),
        ("a backstore removed", lambda: KernelLun(group, 3).storage_object.delete()),
        ("a portal closed", lambda: next(group.network_portals).delete()),
        ("a portal opened", lambda: NetworkPortal(group, "127.0.0.1", 4444)),
        ("CHAP off", lambda: group.set_attribute("authentication", 0)),
        ("demo mode", lambda: group.set_attribute("generate_node_acls", 1)),
        ("another secret", lambda: setattr(next(group.node_acls), "chap_password", "a-secret-of-theirs")),
        ("another depth", lambda: setattr(next(group.node_acls), "tcq_depth", 8)),
        ("a snapshot writable", lambda: setattr(next(one for one in next(group.node_acls).mapped_luns if one.mapped_lun == 3), "write_protect", False)),
        ("an attribute", lambda: KernelLun(group, 0).storage_object.set_attribute("emulate_caw", 0)),
        ("the target removed", lambda: group.parent_target.delete()),
    ]


def check_put_right(lio: Lio) -> None:
    """Whatever was changed is as it was, and the other target was not touched."""
    wanted, other = known(WEB), content(ISCSI / DB.iqn)
    for what, change in by_hand():
        change()
        assert known(WEB) != wanted, what
        bring(lio, WEB, DB, looks=False)  # of which nothing else is wanted: it is not looked at
        bring(lio, WEB, DB)
        assert known(WEB) == wanted, what
        assert content(ISCSI / DB.iqn) == other, what
        print("put right:", what, flush=True)


def known(spec: TargetSpec) -> object:
    """A target but for the names of links and numbers of backstores, which are drawn anew."""
    if not (ISCSI / spec.iqn).is_dir():
        return None
    group = group_of(spec)
    acls = {
        acl.node_wwn: (
            *(acl.chap_userid, acl.chap_password, acl.chap_mutual_userid, acl.chap_mutual_password, acl.tcq_depth),
            sorted((one.mapped_lun, one.write_protect) for one in acl.mapped_luns),
        )
        for acl in group.node_acls
    }
    things = {one.lun: one.storage_object for one in group.luns}
    luns = {number: (one.name, one.wwn, one.readonly, one.udev_path, one.get_attribute("emulate_caw")) for number, one in things.items()}
    attributes = {name: group.get_attribute(name) for name in group.list_attributes()}
    return group.enable, acls, luns, attributes, sorted((one.ip_address, one.port) for one in group.network_portals)


def check_changes(lio: Lio) -> None:
    """What is wanted changes; other targets do not."""
    before = content(ISCSI / DB.iqn)
    moved = dataclasses.replace(WEB, luns=(lun(0, 0)._replace(device="/dev/ram4"), lun(5, 5)), initiators=(OTHER,), chap=NO_SECRET, mutual=NO_SECRET)
    bring(lio, moved, DB, looks=False)
    assert {one.lun: one.storage_object.udev_path for one in group_of(moved).luns} == {0: "/dev/ram4", 5: "/dev/ram5"}
    [acl] = group_of(moved).node_acls
    assert acl.node_wwn == OTHER and not acl.chap_userid and group_of(moved).get_attribute("authentication") == "0"
    bring(lio, dataclasses.replace(WEB, is_open=False), DB)
    assert not group_of(WEB).enable
    bring(lio, dataclasses.replace(WEB, demo=True, initiators=()), DB)
    assert group_of(WEB).chap_userid == "me", "in demo mode the secret is everybody's"
    bring(lio, WEB, DB)
    assert not group_of(WEB).chap_userid
    assert content(ISCSI / DB.iqn) == before


def check_failing_lun(lio: Lio) -> None:
    """It takes no other one down, and is there when its device is."""
    lacking = dataclasses.replace(WEB, luns=(lun(0, 0)._replace(device="/dev/no-such-device"), lun(3, 1, True)))
    done = lio.bring([lacking, DB])
    [trouble] = done.troubles[WEB.iqn]
    assert "LUN 0" in trouble and not done.troubles[DB.iqn], done
    assert [one.lun for one in group_of(WEB).luns] == [3] and group_of(WEB).enable
    assert lio.bring([lacking, DB], looks=False).troubles[WEB.iqn] == [trouble], "it is tried again"
    bring(lio, WEB, DB)
    assert sorted(one.lun for one in group_of(WEB).luns) == [0, 3]


def check_taken_portal(lio: Lio) -> None:
    """Somebody listens where a target should: it is said so, and the other portals are there."""
    with listen("127.0.0.1", 0) as theirs:
        place = theirs.getsockname()
        crowded = dataclasses.replace(WEB, portals=(*WEB.portals, place))
        [trouble] = lio.bring([crowded, DB]).troubles[WEB.iqn]
        assert f"portal 127.0.0.1:{place[1]} cannot be opened" in trouble and "already in use" in trouble, trouble
        assert len(list(group_of(WEB).network_portals)) == 2
    bring(lio, crowded, DB)
    assert len(list(group_of(WEB).network_portals)) == 3
    bring(lio, WEB, DB)


class Killed(BaseException):
    """As the end of the process: nothing that catches errors holds it up."""


class Deaths:
    """Lets a process of this kernel do so many changes of configfs, and none after them.  An audit hook cannot be taken away: there is one."""

    CHANGES = ("os.mkdir", "os.rmdir", "os.symlink", "os.remove")

    def __init__(self) -> None:
        self._left: int | None = None  # None: any number
        sys.addaudithook(self._see)

    def _see(self, event: str, given: tuple[Any, ...]) -> None:
        if self._left is None or not self._is_change(event, given):
            return
        if self._left == 0:
            raise Killed
        self._left -= 1

    def _is_change(self, event: str, given: tuple[Any, ...]) -> bool:
        if event == "open":
            return str(given[0]).startswith(str(CONFIGFS)) and bool(given[2] & (os.O_WRONLY | os.O_RDWR))
        return event in self.CHANGES and any(str(one).startswith(str(CONFIGFS)) for one in given)

    def after(self, changes: int, specs: Sequence[TargetSpec]) -> bool:
        """Bring that, and die after so many changes; whether it was before the end."""
        self._left = changes
        try:
            Lio(IQNS, OBJECTS).bring(specs)
        except Killed:
            return True
        finally:
            self._left = None
        return False


def check_deaths() -> None:
    """At whichever step one dies that makes a target, or removes it, the next one ends what it began."""
    deaths = Deaths()
    bring(Lio(IQNS, OBJECTS), WEB, DB)
    wanted, other = known(WEB), content(ISCSI / DB.iqn)
    for begin, end, what in (((DB,), (WEB, DB), "made"), ((WEB, DB), (DB,), "removed")):
        changes = 0
        while True:
            bring(Lio(IQNS, OBJECTS), *begin)
            died = deaths.after(changes, end)
            done = Lio(IQNS, OBJECTS).bring(end)
            assert not any(done.troubles.values()), (what, changes, done)
            assert known(WEB) == (wanted if WEB in end else None), (what, changes, known(WEB))
            assert len(list(CORE.glob(f"iblock_*/{OBJECTS}*"))) == sum(len(spec.luns) for spec in end), (what, changes)
            if not died:
                break
            changes += 1
        print("deaths while it is", what, changes, flush=True)
        assert changes > 20, "there are more steps"
    assert content(ISCSI / DB.iqn) == other
    bring(Lio(IQNS, OBJECTS), WEB, DB)


def main() -> None:
    lio = Lio(IQNS, OBJECTS)
    assert lio.missing() is None
    assert all(Path("/etc/target", name).is_dir() for name in KEPT_THERE), "persistent reservations need it"
    make_foreign()
    foreign = content(ISCSI / FOREIGN)
    check_made(lio)
    check_put_right(lio)
    check_changes(lio)
    check_failing_lun(lio)
    check_taken_portal(lio)
    check_deaths()
    again = Lio(IQNS, OBJECTS)  # another process
    assert not bring(again, WEB, DB).changes and again.sessions([WEB.iqn, DB.iqn]) == {WEB.iqn: [], DB.iqn: []}
    bring(again, DB)
    assert not (ISCSI / WEB.iqn).exists()
    again.bring([])
    assert [one.wwn for one in FabricModule("iscsi").targets] == [FOREIGN]
    assert content(ISCSI / FOREIGN) == foreign
    print("done")


if __name__ == "__main__":
    main()
