"""blockdevctl vm, disk, snapshot, clone, restore and attach: what they do and the JSON that scripts rely on."""

from __future__ import annotations

import json
import xml.etree.ElementTree
from pathlib import Path

import pytest

from tests.cli.served import Home, run_tool

GIB = 1 << 30
VM_FIELDS = {
    "name",
    "domain",
    "protected_over",
    "received",
    "uuid",
    "description",
    "created",
    "size_bytes",
    "snapshot_count",
    "cloned_from",
    "agent", "policy",
    "disks",
}
DISK_FIELDS = {"name", "size_bytes", "export", "object_id", "created", "state", "clients"}
SNAPSHOT_FIELDS = {
    "newest_on",
    "vm",
    "name",
    "description",
    "created",
    "lsn",
    "consistency",
    "origin",
    "size_bytes",
    "disks",
    "config",
    *("asked", "frozen_ms", "expires", "locked_until", "schedule", "uuid", "changed_bytes"),
}


def write(home: Home, export: str, pattern: int, offset: int = 0, length: int = 65536) -> None:
    run_tool("qemu-io", "-f", "raw", "-c", f"write -P {pattern} {offset} {length}", "-c", "flush", home.uri(export))


def reads(home: Home, export: str, pattern: int, offset: int = 0, length: int = 65536) -> bool:
    output = run_tool("qemu-io", "-r", "-f", "raw", "-c", f"read -P {pattern} {offset} {length}", home.uri(export))
    return "Pattern verification failed" not in output


def test_created_vm_has_the_disks_that_were_asked_for(home: Home, name: str) -> None:
    vm = home.json("vm", "create", name, "--disk", "root=1G", "--disk", "data=512M", "--description", "a test")
    assert set(vm) == VM_FIELDS and all(set(disk) == DISK_FIELDS for disk in vm["disks"])
    assert [(d["name"], d["size_bytes"], d["export"]) for d in vm["disks"]] == [
        ("root", GIB, f"{name}/root"),
        ("data", GIB // 2, f"{name}/data"),
    ]
    assert home.json("vm", "show", name)["description"] == "a test"
    assert run_tool("nbdinfo", "--size", home.uri(f"{name}/root")).strip() == str(GIB)


def test_list_names_every_vm_in_order(home: Home, name: str) -> None:
    for last in "ba":
        home("vm", "create", f"{name}-{last}", "--disk", "root=1M")
    names = [vm["name"] for vm in home.json("vm", "list")["vms"]]
    assert names == sorted(names) and {f"{name}-a", f"{name}-b"} <= set(names)
    assert f"{name}-a" in home("vm", "list")


def test_json_may_be_asked_for_before_the_noun(home: Home) -> None:
    assert "vms" in json.loads(home("--json", "vm", "list"))


def test_show_says_who_is_attached(home: Home, name: str) -> None:
    home("vm", "create", name, "--disk", "root=1M")
    assert home.json("vm", "show", name)["disks"][0]["clients"] == []
    with attached(home, f"{name}/root"):
        clients = home.json("vm", "show", name)["disks"][0]["clients"]
        assert len(clients) == 1 and "pid" in clients[0]
        assert clients[0] in home("vm", "show", name)


def attached(home: Home, export: str):  # type: ignore[no-untyped-def]
    import nbd

    class Attached:
        def __enter__(self) -> object:
            self.handle = nbd.NBD()
            self.handle.connect_uri(home.uri(export))
            return self.handle

        def __exit__(self, *_: object) -> None:
            self.handle.shutdown()

    return Attached()


def test_renamed_vm_has_its_exports_under_the_new_name(home: Home, name: str) -> None:
    home("vm", "create", name, "--disk", "root=1M")
    write(home, f"{name}/root", 7)
    assert home.json("vm", "rename", name, f"{name}-new")["name"] == f"{name}-new"
    assert reads(home, f"{name}-new/root", 7)
    assert name in home.run("vm", "show", name).error


def test_attached_vm_is_neither_renamed_nor_deleted_unless_forced(home: Home, name: str) -> None:
    home("vm", "create", name, "--disk", "root=1M")
    with attached(home, f"{name}/root") as client:
        for command in (["vm", "rename", name, f"{name}-new"], ["vm", "delete", name, "--yes"]):
            refused = home.run(*command)
            assert refused.status == 5 and "pid" in refused.error
        home("vm", "rename", name, f"{name}-new", "--force")
        assert client.pread(512, 0) == bytes(512)  # type: ignore[attr-defined]
        home("vm", "delete", f"{name}-new", "--yes", "--force")
        with pytest.raises(Exception):  # noqa: B017
            client.pread(512, 0)  # type: ignore[attr-defined]
    assert home.run("vm", "show", f"{name}-new").status == 3


def test_deleted_vm_is_gone_with_its_snapshots(home: Home, name: str) -> None:
    home("vm", "create", name, "--disk", "root=1M")
    home("snapshot", "create", name, "--name", "s")
    gone = home.json("vm", "delete", name, "--yes")
    assert gone["name"] == name and gone["snapshot_count"] == 1
    exports = run_tool("nbdinfo", "--list", home.uri(""))
    assert f"{name}/root" not in exports


def test_configuration_is_kept_and_replaced(home: Home, name: str, scratch: Path) -> None:
    text = "<domain>\n  ä\n</domain>\n"
    (scratch / "one.xml").write_text(text)
    home("vm", "create", name, "--disk", "root=1M", "--config", scratch / "one.xml")
    assert home("vm", "config", name) == text
    (scratch / "two.xml").write_text("two")
    home("vm", "config", name, "--set", scratch / "two.xml")
    assert home.json("vm", "config", name) == {"config": "two"}


def test_disks_are_added_resized_and_removed(home: Home, name: str) -> None:
    home("vm", "create", name, "--disk", "root=1M")
    assert home.json("disk", "add", f"{name}/data", "2M")["size_bytes"] == 2 << 20
    assert home.json("disk", "resize", f"{name}/data", "4M")["size_bytes"] == 4 << 20
    assert run_tool("nbdinfo", "--size", home.uri(f"{name}/data")).strip() == str(4 << 20)
    assert home.run("disk", "resize", f"{name}/data", "1M").status == 2
    assert home.json("disk", "resize", f"{name}/data", "1M", "--shrink", "--yes")["size_bytes"] == 1 << 20
    home("disk", "remove", f"{name}/data", "--yes")
    assert [disk["name"] for disk in home.json("vm", "show", name)["disks"]] == ["root"]


def test_snapshot_holds_the_moment_and_says_what_changed(home: Home, name: str) -> None:
    home("vm", "create", name, "--disk", "root=16M", "--disk", "data=16M")
    write(home, f"{name}/root", 1)
    made = home.json("snapshot", "create", name, "--name", "one", "--description", "first")
    assert set(made) == SNAPSHOT_FIELDS and made["consistency"] == "crash" and made["origin"] == "manual"
    write(home, f"{name}/root", 2)
    home("snapshot", "create", name, "--name", "two")
    assert reads(home, f"{name}/root@one", 1) and reads(home, f"{name}/root@two", 2)
    assert [s["name"] for s in home.json("snapshot", "list", name)["snapshots"]] == ["one", "two"]
    assert home.json("snapshot", "show", f"{name}@one")["description"] == "first"
    between = home.json("snapshot", "diff", f"{name}@one", f"{name}@two")
    assert (between["older"], between["newer"], between["changed_bytes"]) == ("one", "two", 65536)
    extents = {disk["disk"]: disk["extents"] for disk in between["disks"]}
    assert extents == {"root": [{"offset": 0, "length": 65536, "state": "data"}], "data": []}
    only = home.json("snapshot", "diff", f"{name}@one", "--disk", "root")
    assert only["older"] is None and only["changed_bytes"] == 65536
    assert "65536" in home("snapshot", "diff", f"{name}@one", f"{name}@two", "--extents")
    home("snapshot", "delete", f"{name}@one", "--yes")
    assert home.run("snapshot", "show", f"{name}@one").status == 3


def test_snapshot_without_a_name_is_named(home: Home, name: str) -> None:
    home("vm", "create", name, "--disk", "root=1M")
    made = home.json("snapshot", "create", name)
    assert made["name"] and f"{name}@{made['name']}" in home("snapshot", "list", name)


def test_a_guest_agent_is_said_shown_and_taken_away(home: Home, name: str) -> None:
    home("vm", "create", name, "--disk", "root=1M")
    assert home("vm", "agent", name) == "no agent\n"
    home("vm", "agent", name, "/run/vm/agent.sock")
    assert home.json("vm", "agent", name) == {"agent": "/run/vm/agent.sock", "way": "socket"}
    assert "/run/vm/agent.sock" in home("vm", "show", name)
    refused = home.run("snapshot", "create", name, "--consistency", "vm", "--if-not-frozen", "fail")
    assert refused.status == 11 and "/run/vm/agent.sock" in refused.error
    home("vm", "agent", name, "--none")
    assert home.json("vm", "show", name)["agent"] is None
    assert home.run("vm", "agent", name, "/run/vm/agent.sock", "--none").status == 2


def test_clones_are_vms_of_their_own(home: Home, name: str) -> None:
    home("vm", "create", name, "--disk", "root=1M")
    write(home, f"{name}/root", 1)
    home("snapshot", "create", name, "--name", "s")
    one = home.json("clone", f"{name}@s", f"{name}-copy")["vms"]
    assert [vm["cloned_from"] for vm in one] == [f"{name}@s"]
    write(home, f"{name}-copy/root", 2)
    assert reads(home, f"{name}/root", 1) and reads(home, f"{name}-copy/root", 2)
    many = home.json("clone", name, "--count", "3", "--prefix", f"{name}-many")["vms"]
    assert [vm["name"] for vm in many] == [f"{name}-many-{i}" for i in (1, 2, 3)]
    assert len({vm["uuid"] for vm in many}) == 3
    assert home.run("clone", name).status == 2
    assert home.run("clone", name, "x", "--count", "2", "--prefix", "y").status == 2


def test_restore_puts_back_and_keeps_the_state_before(home: Home, name: str) -> None:
    home("vm", "create", name, "--disk", "root=1M", "--disk", "data=1M")
    for disk in ("root", "data"):
        write(home, f"{name}/{disk}", 1)
    home("snapshot", "create", name, "--name", "s")
    for disk in ("root", "data"):
        write(home, f"{name}/{disk}", 2)
    done = home.json("restore", f"{name}@s", "--disk", "root", "--yes")
    assert done["disks"] == ["root"] and done["safety_snapshot"]
    assert reads(home, f"{name}/root", 1) and reads(home, f"{name}/data", 2)
    assert reads(home, f"{name}/root@{done['safety_snapshot']}", 2)
    assert set(home.json("restore", f"{name}@s", "--yes")["disks"]) == {"root", "data"}
    assert reads(home, f"{name}/data", 1)


def test_attach_prints_what_each_program_takes(home: Home, name: str) -> None:
    home("vm", "create", name, "--disk", "root=1M")
    home("snapshot", "create", name, "--name", "s")
    uri = home("attach", f"{name}/root").strip()
    assert run_tool("nbdinfo", "--size", uri).strip() == str(1 << 20)
    libvirt = xml.etree.ElementTree.fromstring(home("attach", f"{name}/root@s", "--as", "libvirt"))
    assert libvirt.find("readonly") is not None
    assert home.json("attach", f"{name}/root", "--as", "nbd-client")["text"].startswith("nbd-client ")
    assert "-blockdev" in home("attach", f"{name}/root", "--as", "qemu", "--host", "192.0.2.1")
    assert home.run("attach", f"{name}/none").status == 3
    assert "--host" in home.run("attach", f"{name}/root", "--tls", "psk").error
    assert "iSCSI has no TLS" in home.run("attach", f"{name}/root", "--as", "iscsi", "--host", "192.0.2.1", "--tls", "psk").error


def test_destructive_commands_name_the_loss_and_need_a_yes(home: Home, name: str) -> None:
    home("vm", "create", name, "--disk", "root=1M", "--disk", "data=1M")
    home("snapshot", "create", name, "--name", "s")
    before = home.state()
    for command in (
        ["vm", "delete", name],
        ["disk", "remove", f"{name}/data"],
        ["snapshot", "delete", f"{name}@s"],
        ["restore", f"{name}@s"],
        ["disk", "resize", f"{name}/data", "512K", "--shrink"],
    ):
        refused = home.run(*command)
        assert refused.status == 2 and "--yes" in refused.error and name in refused.error
    assert "root (1 MiB), data (1 MiB) and 1 snapshot" in home.run("vm", "delete", name).error
    assert home.state() == before


def test_pool_status_check_and_scrub(home: Home) -> None:
    status = home.json("pool", "status")
    assert status["engine_running"] and status["engine"]["plugin"] == "native" and status["missing"] == []
    assert "running" in home("pool", "status")
    for verb in ("check", "scrub"):
        found = home.json("pool", verb)
        assert found["findings"] == found["healed"] == [] and found["read_bytes"] > 0
        assert "sound" in home("pool", verb)
        assert home.json("pool", "status")["inspections"][f"last_{verb}"]["finding_count"] == 0
