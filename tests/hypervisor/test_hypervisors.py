"""Hypervisors, discovery and registration with a real libvirt, as a person uses them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
import pytest

from blockdev.vmmap.machine import mac_address
from tests.cli.served import Home, until
from tests.hypervisor.domains import define, disk, domain, file_disk, undefine_all
from tests.hypervisor.libvirt_daemon import LibvirtDaemon

GUEST_CHANNEL = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
CARD = "<interface type='user'/>"


class Lab:
    """The home with the hypervisor `kvm`, and a hand at its libvirt."""

    def __init__(self, home: Home, daemon: LibvirtDaemon) -> None:
        self.home = home
        self.rest = home.rest()
        self.daemon = daemon
        self.connection = daemon.connect()
        self.socket = home.path / "run/nbd.sock"

    def vm(self, name: str, *disks: str) -> None:
        sizes = [{"name": one, "size_bytes": 8 << 20} for one in disks or ("root",)]
        self.rest.post("/vms", json={"name": name, "disks": sizes}).raise_for_status()

    def define(self, name: str, *exports: str, extra: str = "") -> str:
        targets = ("vda", "vdb", "vdc")
        disks = [disk(export, self.socket, target) for export, target in zip(exports, targets, strict=False)]
        return define(self.connection, domain(name, *disks, extra))

    def discover(self) -> Any:
        return self.rest.post("/hypervisors/kvm/discover").raise_for_status().json()

    def domains(self) -> set[str]:
        return {one.name() for one in self.connection.listAllDomains()}

    def xml(self, name: str) -> ElementTree.Element:
        return ElementTree.fromstring(self.connection.lookupByName(name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

    def domain_of(self, vm: str) -> Any:
        return self.rest.get(f"/vms/{vm}").json()["domain"]

    def config(self, vm: str) -> str:
        return str(self.rest.get(f"/vms/{vm}/config").json()["config"])

    def clean(self) -> None:
        if self.daemon.process is None:
            self.daemon.start()
        self.connection = self.daemon.connect()  # the one before may be lost
        undefine_all(self.connection)
        self.rest.delete("/hypervisors/kvm?force=true")
        for vm in self.rest.get("/vms").json()["vms"]:
            self.rest.delete(f"/vms/{vm['name']}?force=true").raise_for_status()
        self.rest.close()


@pytest.fixture
def lab(home: Home, libvirtd: LibvirtDaemon) -> Iterator[Lab]:
    made = Lab(home, libvirtd)
    made.rest.post("/hypervisors", json={"name": "kvm", "uri": libvirtd.uri}).raise_for_status()
    yield made
    made.clean()


def test_hypervisors_are_added_listed_and_removed(lab: Lab) -> None:
    home = lab.home
    (shown,) = home.json("hypervisor", "list")["hypervisors"]
    assert (shown["name"], shown["uri"], shown["at_once"], shown["vm_count"], shown["domain_count"]) == ("kvm", lab.daemon.uri, 4, 0, 0)
    assert shown["is_reachable"] and shown["version"].startswith("9.") and shown["error"] is None
    assert "already" in home.run("hypervisor", "add", "kvm", "test:///default").error
    again = home.run("hypervisor", "add", "again", lab.daemon.uri)
    assert again.status == 4 and "hypervisor kvm has the address" in again.error
    away = home.run("hypervisor", "add", "away", "qemu+unix:///system?socket=/nowhere")
    assert away.status == 11 and "cannot be reached" in away.error
    for bad in ("", "nonsense", "qemu:///embed?root=/tmp/x"):
        assert home.run("hypervisor", "add", "bad", bad).status == 2, bad
    home("hypervisor", "add", "second", "test:///default", "--at-once", "2")
    assert [one["name"] for one in home.json("hypervisor", "list")["hypervisors"]] == ["kvm", "second"]
    assert "forgot hypervisor second" in home("hypervisor", "remove", "second")
    assert home.run("hypervisor", "remove", "second").status == 3
    assert home.run("hypervisor", "discover", "second").status == 3


def test_discovery_links_vms_to_the_domains_that_have_their_disks(lab: Lab) -> None:
    lab.vm("web", "root", "data")
    lab.vm("db", "root", "logs")
    lab.vm("idle")
    uuid = lab.define("web-domain", "web/root", "web/data")
    lab.define("db", "db/root", extra=file_disk("/images/old.img"))
    lab.define("foreign", extra=file_disk("/images/foreign.img", "sdz"))
    found = lab.discover()
    assert found["hypervisors"] == [{"hypervisor": "kvm", "domain_count": 3, "error": None}]
    assert [(one["vm"], one["domain"], one["is_new"]) for one in found["links"]] == [("db", "db", True), ("web", "web-domain", True)]
    assert {(one["domain"], one["target"], one["source"]) for one in found["foreign"]} == {
        ("db", "vdb", "file /images/old.img"),
        ("foreign", "sdz", "file /images/foreign.img"),
    }
    assert (found["unattached_vms"], found["unattached_disks"]) == (["idle"], ["db/logs"])
    assert found["mixed"] == found["shared"] == found["lost"] == []
    assert lab.domain_of("web") == {"hypervisor": "kvm", "name": "web-domain", "uuid": uuid, "state": "there", "made": False}
    assert lab.config("web") == lab.connection.lookupByName("web-domain").XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    again = lab.discover()
    assert [one.pop("is_new") for one in again["links"]] == [False, False]
    for link in found["links"]:
        link.pop("is_new")
    assert again == found
    told = lab.home("hypervisor", "discover")
    assert "attached to nothing: disk db/logs" in told and "VM web: domain kvm/web-domain\n" in told


def test_what_domains_share_or_mix_is_reported_and_not_guessed(lab: Lab) -> None:
    lab.vm("web")
    lab.vm("db")
    lab.define("first", "web/root")
    second = lab.connection.lookupByUUIDString(lab.define("second", "web/root"))
    lab.define("both", "web/root", "db/root")
    found = lab.discover()
    assert found["links"] == []
    assert found["mixed"] == [{"hypervisor": "kvm", "domain": "both", "vms": ["db", "web"]}]
    assert found["shared"] == [{"export": "web/root", "domains": ["kvm/both", "kvm/first", "kvm/second"]}]
    assert found["undecided"] == [{"vm": "web", "domains": ["kvm/first", "kvm/second"]}]
    assert "VM web is not linked: kvm/first, kvm/second have disks of it" in lab.home("hypervisor", "discover")
    second.create()
    assert [one["domain"] for one in lab.discover()["links"]] == ["second"], "the one that runs"
    second.destroy()
    assert [one["domain"] for one in lab.discover()["links"]] == ["second"], "a link that holds stays"


def test_a_disk_that_a_domain_has_and_this_home_has_not_is_reported(lab: Lab) -> None:
    lab.vm("web")
    lab.rest.post("/vms/web/snapshots", json={"name": "s"}).raise_for_status()
    lab.define("web", "web/root", "web/data")
    lab.define("reader", "web/root@s", "web/root@none", "web/data@s")
    lab.define("old", "deleted/root")
    found = lab.discover()
    assert [(one["domain"], one["export"]) for one in found["missing"]] == [
        ("old", "deleted/root"), ("reader", "web/data@s"), ("reader", "web/root@none"), ("web", "web/data")
    ]  # fmt: skip
    assert [one["domain"] for one in found["links"]] == ["web"] and found["undecided"] == []
    assert "disk that is not there: kvm/old has deleted/root" in lab.home("hypervisor", "discover")


def test_a_domain_that_is_gone_loses_its_link_with_a_line_that_says_so(lab: Lab) -> None:
    lab.vm("web")
    lab.define("web", "web/root")
    lab.discover()
    config = lab.config("web")
    lab.connection.lookupByName("web").undefine()
    found = lab.discover()
    assert found["lost"] == [{"vm": "web", "hypervisor": "kvm", "domain": "web", "reason": "it is gone"}]
    assert found["unattached_vms"] == ["web"]
    assert lab.domain_of("web") is None and lab.config("web") == config


def test_a_domain_given_another_disk_loses_its_link(lab: Lab) -> None:
    lab.vm("web")
    uuid = lab.define("web", "web/root")
    lab.discover()
    lab.connection.defineXML(domain("web", file_disk("/other.img")).replace("<memory", f"<uuid>{uuid}</uuid><memory"))
    assert [one["reason"] for one in lab.discover()["lost"]] == ["it has no disk of the VM any more"]


def test_secrets_of_a_domain_are_not_kept(lab: Lab) -> None:
    lab.vm("web")
    lab.define("web", "web/root", extra="<graphics type='vnc' autoport='yes' passwd='secret7'/>")
    lab.discover()
    assert "vnc" in lab.config("web") and "secret7" not in lab.config("web")


def test_clones_are_registered_started_and_unregistered(lab: Lab) -> None:
    lab.vm("web", "root", "data")
    lab.define("web", "web/root", "web/data", extra=CARD + GUEST_CHANNEL)
    lab.discover()
    made = lab.home.json("clone", "web", "--count", "3", "--prefix", "c", "--register", "kvm", "--at-once", "2", "--start")
    assert [one["name"] for one in made["vms"]] == [f"c-{number}" for number in range(1, 4)]
    assert made["registrations"] == [
        {"vm": f"c-{number}", "domain": f"c-{number}", "state": "started", "error": None} for number in range(1, 4)
    ]
    for vm in made["vms"]:
        name, uuid = vm["name"], vm["uuid"]
        assert lab.domain_of(name) == {"hypervisor": "kvm", "name": name, "uuid": uuid, "state": "there", "made": True}
        xml = lab.xml(name)
        assert xml.findtext("uuid") == uuid and xml.find("./devices/interface/mac").get("address") == mac_address(uuid, 0)  # type: ignore[union-attr]
        assert [source.get("name") for source in xml.findall("./devices/disk/source")] == [f"{name}/root", f"{name}/data"]
        clients = [disk["clients"] for disk in lab.rest.get(f"/vms/{name}").json()["disks"]]
        assert all(len(one) == 1 and "qemu" in one[0] for one in clients), clients
    shown = lab.rest.get("/vms/c-1/domain").json()
    assert (shown["is_running"], shown["error"]) == (True, None)
    found = lab.discover()
    assert not any(one["is_new"] for one in found["links"]) and len(found["links"]) == 4 and not found["shared"]

    busy = lab.home.run("vm", "delete", "c-1", "--force", "--yes")
    assert busy.status == 5 and "vm unregister c-1 first" in busy.error
    busy = lab.home.run("vm", "unregister", "c-1", "--yes")
    assert busy.status == 5 and "domain c-1 of hypervisor kvm runs" in busy.error
    assert lab.home.run("hypervisor", "remove", "kvm").status == 5
    lab.home("vm", "unregister", "c-1", "--force", "--yes")
    assert "c-1" not in lab.domains() and lab.domain_of("c-1") is None
    lab.home("vm", "delete", "c-1", "--yes")
    assert "was not made by blockdev" in lab.home.run("vm", "unregister", "web", "--yes").error
    assert "web" in lab.domains()


def test_a_customized_clone_starts_with_its_seed(lab: Lab) -> None:
    lab.vm("web")
    lab.define("web", "web/root", extra=CARD)
    lab.discover()
    made = lab.home.json("clone", "web", "copy", "--customize", "--register", "kvm", "--start")
    assert made["registrations"] == [{"vm": "copy", "domain": "copy", "state": "started", "error": None}]
    root, seed = lab.xml("copy").findall("./devices/disk")
    assert [one.find("source").get("name") for one in (root, seed)] == ["copy/root", "copy/seed"]  # type: ignore[union-attr]
    assert seed.find("readonly") is not None and seed.find("target").get("dev") == "vdb"  # type: ignore[union-attr]


def test_a_control_plane_killed_while_it_registers_finds_out_which_are_there(lab: Lab) -> None:
    lab.vm("web")
    lab.define("web", "web/root")
    lab.discover()
    lab.rest.post("/vms/web/clones", json={"count": 20, "prefix": "c"}).raise_for_status()
    names = [f"c-{number}" for number in range(1, 21)]
    lab.rest.post("/hypervisors/kvm/registrations", json={"vms": names}).raise_for_status()
    until(lambda: "c-3" in lab.domains(), "some registrations")
    killed = lab.home.control_pid()
    os.kill(killed, signal.SIGKILL)
    until(lambda: lab.home.control_pid() not in (0, killed), "the next control plane")
    until(lambda: lab.home.run("vm", "list").status == 0, "its answer")
    lab.rest = lab.home.rest()

    def states() -> dict[str, str]:
        return {vm["name"]: vm["domain"]["state"] for vm in lab.rest.get("/vms").json()["vms"] if vm["domain"]}

    until(lambda: set(states().values()) == {"there"}, "registrations that are settled")
    assert set(states()) == lab.domains()


def test_one_registration_that_fails_does_not_stop_the_others(lab: Lab) -> None:
    lab.vm("web")
    lab.define("web", "web/root")
    lab.discover()
    lab.home("clone", "web", "--count", "3", "--prefix", "c")
    lab.vm("bare")
    lab.define("c-2")  # somebody has that name
    result = lab.home.run("vm", "register", "c-1", "c-2", "bare", "nobody", "c-3", "web", "--hypervisor", "kvm", "--json")
    assert result.status == 1
    outcomes = {one["vm"]: one for one in json.loads(result.stdout)["registrations"]}
    assert {vm: one["state"] for vm, one in outcomes.items()} == {
        "c-1": "registered", "c-2": "failed", "bare": "failed", "nobody": "failed", "c-3": "registered", "web": "failed"
    }  # fmt: skip
    [job] = lab.home.json("job", "list", "--kind", "vm.register", "--count", "1")["jobs"]
    assert lab.home.run("job", "watch", job["id"], "--json") == result, "as the command that began it"
    assert "there is a domain c-2 with uuid" in outcomes["c-2"]["error"]
    assert "no configuration that libvirt could define" in outcomes["bare"]["error"]
    assert "there is no VM nobody" in outcomes["nobody"]["error"]
    assert "already" in outcomes["web"]["error"]
    assert lab.domains() == {"web", "c-1", "c-2", "c-3"} and lab.domain_of("c-2") is None
    assert lab.home.run("vm", "register", "c-2", "--hypervisor", "none").status == 3


def test_a_cancelled_registration_begins_no_more_and_says_which_are_there(lab: Lab) -> None:
    lab.vm("web")
    lab.define("web", "web/root")
    lab.discover()
    lab.rest.post("/vms/web/clones", json={"count": 20, "prefix": "c"}).raise_for_status()
    names = [f"c-{number}" for number in range(1, 21)]
    job = f"/jobs/{lab.rest.post('/hypervisors/kvm/registrations', json={'vms': names, 'at_once': 1}).json()['id']}"
    until(lambda: "c-2" in lab.domains(), "the second registration")
    lab.rest.delete(job)
    ended = until(lambda: (found := lab.rest.get(job).json())["finished"] and found, "the job's end")
    assert ended["state"] == "cancelled"
    outcomes = {one["vm"]: one["state"] for one in ended["result"]["registrations"]}
    registered = {vm for vm, state in outcomes.items() if state == "registered"}
    assert registered == lab.domains() - {"web"} and set(outcomes.values()) == {"registered", "cancelled"}
    assert {vm for vm in names if lab.domain_of(vm)} == registered


def test_ctrl_c_ends_a_registration_and_each_clone_has_its_outcome(lab: Lab) -> None:
    lab.vm("web")
    lab.define("web", "web/root")
    lab.discover()
    asking = lab.home.start_command("clone", "web", "--count", "20", "--prefix", "c", "--register", "kvm", "--at-once", "1", "--json")
    until(lambda: "c-2" in lab.domains(), "the second registration")
    asking.send_signal(signal.SIGINT)
    out, error = asking.communicate(timeout=120)
    assert (asking.returncode, error.strip()) == (130, "error: interrupted")
    told = json.loads(out)
    assert [one["vm"] for one in told["registrations"]] == [one["name"] for one in told["vms"]] == [f"c-{n}" for n in range(1, 21)]
    outcomes = {one["vm"]: one["state"] for one in told["registrations"]}
    assert {vm for vm, state in outcomes.items() if state == "registered"} == lab.domains() - {"web"}
    assert set(outcomes.values()) == {"registered", "cancelled"}


def test_a_linked_vm_is_not_renamed_under_its_domain(lab: Lab) -> None:
    lab.vm("web")
    lab.define("web", "web/root")
    lab.discover()
    refused = lab.home.run("vm", "rename", "web", "www")
    assert refused.status == 5 and "has the exports of VM web by their names: use force" in refused.error
    lab.home("vm", "rename", "web", "www", "--force")


def test_a_registered_vm_that_is_renamed_is_to_be_unregistered_first(lab: Lab) -> None:
    lab.vm("web")
    lab.define("web", "web/root")
    lab.discover()
    lab.home("clone", "web", "copy", "--register", "kvm")
    refused = lab.home.run("vm", "rename", "copy", "other")
    assert refused.status == 5 and "blockdevctl vm unregister copy first" in refused.error


def test_each_snapshot_has_the_configuration_of_its_instant(lab: Lab) -> None:
    home = lab.home
    lab.vm("web")
    uuid = lab.define("web", "web/root")
    lab.discover()

    def give(mebibytes: int) -> None:
        text = domain("web", disk("web/root", lab.socket)).replace("<memory", f"<uuid>{uuid}</uuid><memory")
        lab.connection.defineXML(text.replace(">64<", f">{mebibytes}<"))

    def memory(text: str) -> int:
        return int(ElementTree.fromstring(text).findtext("memory") or 0) >> 10

    def of_snapshot(name: str) -> int:
        return memory(home.json("snapshot", "show", f"web@{name}")["config"])

    give(65)
    home("snapshot", "create", "web", "--name", "s65")
    give(66)
    home("clone", "web", "copy")
    assert memory(lab.config("copy")) == 66
    give(67)
    restored = home.json("restore", "web@s65", "--yes")
    assert of_snapshot(restored["safety_snapshot"]) == 67 and of_snapshot("s65") == 65
    give(68)
    home("schedule", "set", "web", "now", "--at", "daily 00:00", "--keep", "1d")
    scheduled = home.json("schedule", "run", "web", "now")
    assert of_snapshot(scheduled["name"]) == 68
    give(69)
    home("vm", "export", "web", str(Path(home.above, "out")), "--format", "raw")
    assert memory(lab.config("web")) == 69


def test_a_domain_that_was_renamed_is_called_so_from_the_next_snapshot_on(lab: Lab) -> None:
    lab.vm("web")
    lab.define("web", "web/root")
    lab.discover()
    lab.connection.lookupByName("web").rename("www")
    lab.home("snapshot", "create", "web")
    assert lab.domain_of("web")["name"] == "www"


def test_a_domain_without_a_disk_of_the_vm_is_not_frozen_for_it(lab: Lab) -> None:
    """Its guest says nothing of what the disks hold: the snapshot would be called consistent for nothing."""
    lab.vm("web")
    uuid = lab.define("web", "web/root", extra=GUEST_CHANNEL)
    lab.discover()
    other = domain("web", GUEST_CHANNEL).replace("<memory", f"<uuid>{uuid}</uuid><memory")
    lab.connection.defineXML(other).create()
    refused = lab.home.run("snapshot", "create", "web", "--consistency", "vm", "--if-not-frozen", "fail")
    assert refused.status == 11 and "domain web of hypervisor kvm has no disk of VM web any more" in refused.error


def test_a_hypervisor_that_does_not_answer_keeps_no_snapshot_waiting(lab: Lab) -> None:
    home = lab.home
    lab.vm("web")
    lab.define("web", "web/root")
    lab.discover()
    config = lab.config("web")
    assert lab.daemon.process is not None
    daemon = int((lab.daemon.directory / "libvirtd.pid").read_text())
    os.kill(daemon, signal.SIGSTOP)  # it answers nothing, and its socket takes connections
    try:
        times = []
        for number in range(4):
            began = time.monotonic()
            lab.rest.post("/vms/web/snapshots", json={"name": f"s{number}"}).raise_for_status()
            times.append(time.monotonic() - began)
        assert 2 <= times[0] < 8 and all(one < 2 for one in times[1:]), times  # 2 s is how long libvirt is waited for
        refused = home.run("snapshot", "create", "web", "--consistency", "vm", "--if-not-frozen", "fail")
        assert refused.status == 11 and "left alone for up to 60 s" in refused.error
        assert home.json("snapshot", "create", "web", "--consistency", "vm")["consistency"] == "crash"
    finally:
        os.kill(daemon, signal.SIGCONT)
    assert lab.config("web") == config
    noted = until(lambda: [one for one in home.json("events")["events"] if one["kind"] == "hypervisor"], "the event")
    assert [one["level"] for one in noted].count("warning") == 1 and "hypervisor kvm does not answer" in noted[0]["message"]
    (shown,) = home.json("hypervisor", "list")["hypervisors"]  # asks although it was out
    assert shown["is_reachable"], shown
    until(lambda: "hypervisor kvm answers again" in home("events"), "the event of its end")


def test_nothing_is_cloned_for_a_hypervisor_that_is_not_there(lab: Lab) -> None:
    lab.vm("web")
    assert lab.home.run("clone", "web", "copy", "--register", "none").status == 3
    lab.daemon.stop()
    refused = lab.home.run("clone", "web", "copy", "--register", "kvm")
    assert refused.status == 11 and "nothing was made" in refused.error
    assert [vm["name"] for vm in lab.home.json("vm", "list")["vms"]] == ["web"]
    assert lab.home.json("snapshot", "list", "web")["snapshots"] == []


def test_a_restarted_libvirt_is_connected_to_again(lab: Lab) -> None:
    lab.vm("web")
    lab.define("web", "web/root")
    lab.discover()
    lab.daemon.stop()
    (shown,) = lab.home.json("hypervisor", "list")["hypervisors"]
    assert not shown["is_reachable"] and "cannot be reached" in shown["error"]
    found = lab.home.run("hypervisor", "discover", "kvm")
    assert found.status == 1 and "did not answer" in found.stdout
    assert lab.domain_of("web") is not None, "what is not known to be gone stays"
    lab.daemon.start()
    assert [one["vm"] for one in lab.discover()["links"]] == ["web"]
