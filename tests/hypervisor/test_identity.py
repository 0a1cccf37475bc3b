"""What a clone's domain has of its own, and which configurations are refused."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import pytest

from blockdev.errors import InvalidArgument
from blockdev.hypervisor.disks import ARGUMENTS, disks_of, names_vm
from blockdev.hypervisor.identity import own_domain
from blockdev.hypervisor.place import Place, is_remote
from blockdev.vmmap.machine import mac_address
from blockdev.vmmap.names import ObjectName
from tests.hypervisor.domains import DOMAIN, disk, domain, file_disk
from tests.hypervisor.dying import wire

UUID = "8d0c6b9a-3c11-4c4e-9a39-0b6f6d2f3b11"
SOCKET = "/srv/run/nbd.sock"
QEMU = " xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
ROOT = disk("web/root", SOCKET, rest="<serial>abc</serial>")
DATA = disk("web/data", SOCKET, "vdb")
NVDIMM = "<memory model='nvdimm'><source><path>/images/pmem</path></source><target><size>1</size></target></memory>"


def own(xml: str, *disks: str) -> ElementTree.Element:
    return ElementTree.fromstring(own_domain(xml, "copy", UUID, disks or ("root",)))


def test_identity_is_the_vms() -> None:
    made = own(
        domain("web", ROOT, rest="<title>the web server</title><genid>4a2f1a2e-3c11-4c4e-9a39-0b6f6d2f3b11</genid>").replace(
            "<memory", "<uuid>11111111-3c11-4c4e-9a39-0b6f6d2f3b11</uuid><memory"
        )
    )
    assert (made.findtext("name"), made.findtext("uuid")) == ("copy", UUID)
    assert made.find("title") is None and not made.findtext("genid")


def test_the_hardware_that_a_guest_sees_by_its_uuid_has_the_new_one() -> None:
    rest = "<sysinfo type='smbios'><system><entry name='uuid'>1</entry><entry name='serial'>7</entry></system></sysinfo>"
    made = own(domain("web", ROOT, rest=rest))
    assert [(entry.get("name"), entry.text) for entry in made.iter("entry")] == [("uuid", UUID)]


def test_interfaces_have_addresses_by_their_order() -> None:
    card = "<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><target dev='tap7'/></interface>"
    made = own(domain("web", ROOT, card, "<interface type='user'/>"))
    assert [mac.get("address") for mac in made.iter("mac")] == [mac_address(UUID, 0), mac_address(UUID, 1)]
    assert made.find("./devices/interface/target") is None
    assert made.find("./devices/interface/source").get("bridge") == "br0"  # type: ignore[union-attr]


def test_exports_of_the_origin_become_the_vms_and_the_rest_of_the_disk_stays() -> None:
    tcp = DATA.replace("transport='unix' socket='/srv/run/nbd.sock'", "name='10.0.0.5' port='10900'")
    made = own(domain("web", ROOT, tcp), "root", "data")
    root, data = made.findall("./devices/disk")
    assert root.find("source").get("name") == "copy/root" and root.findtext("serial") == "abc"  # type: ignore[union-attr]
    assert root.find("source/host").get("socket") == SOCKET  # type: ignore[union-attr]
    assert data.find("source").get("name") == "copy/data"  # type: ignore[union-attr]
    assert data.find("source/host").get("name") == "10.0.0.5"  # type: ignore[union-attr]


def test_a_disk_that_the_configuration_lacks_is_added_beside_the_others() -> None:
    made = own(domain("web", ROOT, DATA), "root", "data", "seed", "more")
    disks = made.findall("./devices/disk")
    assert {one.find("source").get("name") for one in disks} == {"copy/root", "copy/data", "copy/seed", "copy/more"}  # type: ignore[union-attr]
    targets = {one.find("source").get("name"): one.find("target") for one in disks}  # type: ignore[union-attr]
    assert {target.get("dev") for target in targets.values()} == {"vda", "vdb", "vdc", "vdd"}  # type: ignore[union-attr]
    seed = next(one for one in disks if one.find("source").get("name") == "copy/seed")  # type: ignore[union-attr]
    assert seed.find("readonly") is not None and seed.find("target").get("bus") == "virtio"  # type: ignore[union-attr]
    assert seed.find("source/host").get("socket") == SOCKET  # type: ignore[union-attr]


def test_ports_sockets_and_files_of_the_origin_are_not_the_clones() -> None:
    devices = (
        "<channel type='unix'><source mode='bind' path='/run/web/qga.sock'/>"
        "<target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
        "<channel type='unix'><source mode='bind' path='/run/web/own.sock'/><target type='virtio' name='org.blockdev.0'/></channel>"
        "<serial type='tcp'><source mode='bind' host='0.0.0.0' service='4555'/><protocol type='telnet'/></serial>"
        "<serial type='file'><source path='/var/log/web.log'/></serial>"
        "<console type='pty'><source path='/dev/pts/4'/><log file='/var/log/web-console.log'/></console>"
        "<graphics type='vnc' port='5901' autoport='no' websocket='5701'><listen type='address'/></graphics>"
        "<vsock model='virtio'><cid auto='no' address='7'/></vsock>"
    )
    rest = (
        "<qemu:commandline><qemu:arg value='-chardev'/>"
        "<qemu:arg value='socket,id=agent,path=/run/vm/web/agent.sock,server=on,wait=off'/>"
        "<qemu:arg value='-drive'/><qemu:arg value='file=nbd+unix:///web/data?socket=/srv/run/nbd.sock,if=virtio'/>"
        "<qemu:arg value='-blockdev'/><qemu:arg value='{\"driver\":\"nbd\",\"export\":\"web/more\"}'/></qemu:commandline>"
    )
    made = own(domain("web", ROOT, devices, rest=rest, namespace=QEMU), "root", "data", "more")
    text = ElementTree.tostring(made, encoding="unicode")
    agent, other = made.findall("./devices/channel/source")
    assert agent.get("path") is None and other.get("path") == "/run/web/own-copy.sock"
    tcp, file = made.findall("./devices/serial")
    assert tcp.get("type") == "pty" and len(tcp) == 0
    assert file.find("source").get("path") == "/var/log/web-copy.log"  # type: ignore[union-attr]
    assert made.find("./devices/console/source") is None and "/var/log/web-console-copy.log" in text
    graphics = made.find("./devices/graphics")
    assert graphics is not None and (graphics.get("port"), graphics.get("autoport"), graphics.get("websocket")) == (None, "yes", None)
    assert made.find("./devices/vsock/cid").attrib == {"auto": "yes"}  # type: ignore[union-attr]
    assert "path=/run/vm/web/agent-copy.sock,server=on" in text
    assert "nbd+unix:///copy/data?socket=/srv/run/nbd.sock" in text and "copy/more" in text
    assert "web/data" not in text and "web/more" not in text and "qemu:commandline" in text


def arguments(*values: str) -> str:
    given = "".join(f"<qemu:arg value={quoteattr(value)}/>" for value in values)
    return f"<qemu:commandline>{given}</qemu:commandline>"


@pytest.mark.parametrize(
    "value",
    [
        "driver=nbd,node-name=n,server.type=unix,server.path=/srv/run/nbd.sock,export={}",
        "file.driver=nbd,file.path=/srv/run/nbd.sock,file.export={},if=virtio",
        "file=nbd:unix:/srv/run/nbd.sock:exportname={},if=virtio",
        "file=nbd+tcp://127.0.0.1:10900/{},if=virtio",
    ],
)
def test_an_export_of_the_origin_is_found_however_qemu_is_given_it(value: str) -> None:
    made = own(domain("web", ROOT, rest=arguments("-drive", value.format("web/data")), namespace=QEMU), "root", "data")
    assert made.findall(ARGUMENTS)[1].get("value") == value.format("copy/data")
    assert len(made.findall("./devices/disk")) == 1


def test_an_export_whose_name_is_escaped_is_found() -> None:
    rest = arguments("-blockdev", '{"driver":"nbd","export":"web\\/data"}')
    assert own(domain("web", ROOT, rest=rest, namespace=QEMU), "root", "data").findall(ARGUMENTS)[1].get("value", "").count("copy/data") == 1


def test_cards_and_sockets_that_qemu_is_given_are_the_vms_own() -> None:
    card = "<interface type='vhostuser'><source type='unix' path='/run/web.vhost' mode='server'/></interface>"
    given = (
        *("-device", "virtio-net-pci,netdev=n,mac=52:54:00:00:00:01", "-device", '{"driver":"e1000","mac":"52:54:00:00:00:02"}'),
        *("-qmp", "unix:/run/web.qmp,server=on,wait=off", "-qmp", "unix:/run/other,server=off"),
        *("-chardev", "file,id=log,path=/var/log/web.log", "-serial", "file:/var/log/web-serial.log"),
    )
    made = own(domain("web", ROOT, card, rest=arguments(*given), namespace=QEMU))
    values = [one.get("value") for one in made.findall(ARGUMENTS)][1::2]
    assert values == [
        f"virtio-net-pci,netdev=n,mac={mac_address(UUID, 1)}",
        f'{{"driver":"e1000","mac":"{mac_address(UUID, 2)}"}}',
        *("unix:/run/web-copy.qmp,server=on,wait=off", "unix:/run/other,server=off"),
        *("file,id=log,path=/var/log/web-copy.log", "file:/var/log/web-serial-copy.log"),
    ]
    assert made.find("./devices/interface/source").get("path") == "/run/web-copy.vhost"  # type: ignore[union-attr]


def test_a_port_of_a_switch_has_a_name_of_its_own() -> None:
    port = "<virtualport type='{}'><parameters interfaceid='09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4f' profileid='p'/></virtualport>"
    cards = [f"<interface type='bridge'><source bridge='br0'/>{port.format(kind)}</interface>" for kind in ("openvswitch", "midonet")]
    first, second = own(domain("web", ROOT, *cards)).iter("parameters")
    assert first.attrib == {"profileid": "p"} and len(second.attrib) == 2


def test_a_path_that_names_no_file_is_left_to_libvirt() -> None:
    made = own(domain("web", ROOT, "<serial type='file'><source path='/'/><log/></serial>"))
    assert made.find("./devices/serial/source").get("path") == "/"  # type: ignore[union-attr]


def test_a_firmwares_variables_are_made_anew() -> None:
    xml = DOMAIN.replace("hvm</type>", "hvm</type>{os}")
    loader = "<loader readonly='yes' type='pflash'>/code.fd</loader>"
    for given, kept in ((" template='/vars.fd'", "/vars.fd"), ("", None)):
        system = f"{loader}<nvram{given}>/var/lib/web_VARS.fd</nvram>"
        made = own(xml.format(name="web", devices=ROOT, rest="", namespace="", os=system))
        nvram = made.find("./os/nvram")
        assert (None if nvram is None else (nvram.get("template"), nvram.text)) == (kept and (kept, None))
        assert made.find("./os/loader") is not None


@pytest.mark.parametrize(
    ("xml", "disks", "message"),
    [
        ("", ("root",), "no configuration that libvirt could define"),
        ("<html/>", ("root",), "no configuration that libvirt could define"),
        (domain("web", ROOT, file_disk("/images/web.img")), ("root",), "not blockdev's, file /images/web.img"),
        (domain("web", ROOT, DATA), ("root",), "has a disk web/data, and the VM has no disk data"),
        (domain("web", ROOT, disk("db/data", SOCKET, "vdb")), ("root", "data"), "disks of several VMs: db, web"),
        (domain("web", ROOT, NVDIMM), ("root",), "has /images/pmem as nvdimm"),
        (domain("web", ROOT, rest=arguments("-drive", "file=/images/web.img,if=virtio"), namespace=QEMU), ("root",), "file /images/web.img"),
        (domain("web", ROOT, "<a>" * 5000 + "</a>" * 5000), ("root",), "too deep"),
        (domain("web"), ("root",), "no disk on NBD that would say where root is to be"),
    ],
)
def test_a_configuration_that_cannot_be_a_clones_is_refused(xml: str, disks: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        own(xml, *disks)


def test_what_nobody_writes_to_may_be_in_two_domains() -> None:
    cd = "<disk type='file' device='cdrom'><source file='/iso'/><target dev='sda' bus='sata'/></disk>"
    empty = "<disk type='file' device='cdrom'><target dev='sdb' bus='sata'/></disk>"
    base = file_disk("/base.img").replace("</disk>", "<readonly/></disk>")
    old = disk("web/data@monday", SOCKET, "vdd", "<readonly/>")
    rest = arguments("-drive", "file=/other.iso,media=cdrom", "-blockdev", '{"driver":"file","read-only":true,"filename":"/x"}', "-fw_cfg", "name=x,file=/y")
    made = own(domain("web", ROOT, cd, empty, base, old, rest=rest, namespace=QEMU))
    names = [source.get("name") or source.get("file") for source in made.findall("./devices/disk/source")]
    assert names == ["copy/root", "/iso", "/base.img", "web/data@monday"]


def test_which_disks_are_of_this_home(tmp_path: Path) -> None:
    place = Place(tmp_path / "nbd.sock", "127.0.0.1", 10900)
    local = f"<host transport='unix' socket='{tmp_path}/nbd.sock'/>"
    hosts = {
        local: True,
        f"<host transport='unix' socket='{tmp_path}/../{tmp_path.name}/nbd.sock'/>": True,
        "<host transport='unix' socket='/elsewhere/nbd.sock'/>": False,
        "<host name='127.0.0.1' port='10900'/>": True,
        "<host name='localhost' port='10900'/>": True,
        "<host name='127.0.0.1' port='10809'/>": False,
        "<host name='127.0.0.1'/>": False,
        "<host name='192.0.2.1' port='10900'/>": False,
    }
    for host, is_ours in hosts.items():
        xml = domain("web", f"<disk type='network'><source protocol='nbd' name='web/root'>{host}</source><target dev='vda'/></disk>")
        (found,) = disks_of(ElementTree.fromstring(xml), place, remote=False, luns={})
        assert found.export == (ObjectName("web", "root") if is_ours else None), host
        (far,) = disks_of(ElementTree.fromstring(xml), place, remote=True, luns={})
        assert far.export is None, f"another machine's {host} is not ours"
    anywhere = Place(tmp_path / "nbd.sock", "0.0.0.0", 10809)
    assert anywhere.has_host("127.0.0.1", "") and not anywhere.has_host("192.0.2.1", "")
    assert anywhere.has_host("127.0.0.2", "10809") and not anywhere.has_host("no.such.host.invalid", "10809")


def test_disks_given_to_qemu_behind_libvirts_back_are_seen(tmp_path: Path) -> None:
    arguments = (
        f"<qemu:commandline><qemu:arg value='file=nbd+unix:///web/root?socket={tmp_path}/nbd.sock,if=virtio'/>"
        "<qemu:arg value='nbd://192.0.2.1/web/data'/><qemu:arg value='nbd://[bad/'/>"
        "<qemu:arg value='-drive'/><qemu:arg value='if=virtio,file=/images/a.raw'/>"
        "<qemu:arg value='-drive'/><qemu:arg value='file=/images/b.iso,media=cdrom'/></qemu:commandline>"
    )
    xml = domain("web", rest=arguments, namespace=QEMU)
    found = disks_of(ElementTree.fromstring(xml), Place(tmp_path / "nbd.sock"), remote=False, luns={})
    assert [one.export for one in found] == [ObjectName("web", "root"), None, None, None]
    assert [one.source for one in found if one.is_foreign] == ["nbd://192.0.2.1/web/data", "nbd://[bad/", "file /images/a.raw"]


def test_a_disk_on_a_target_of_this_home_is_the_vms(tmp_path: Path) -> None:
    catalog, hypervisors, _ = wire(tmp_path)
    with catalog.transaction(grows=True):
        vm = catalog.insert_vm(UUID, "web", "2026-01-01T00:00:00.000Z")
        target = catalog.insert_target(vm, "iqn.2026-01.org.example:web", demo=True, depth=64, created="2026-01-01T00:00:00.000Z")
        for number, name in enumerate(("root", "data")):
            catalog.put_disk(vm, name, number, 1 << 20, "2026-01-01T00:00:00.000Z")
            lun = catalog.disk(vm, name)
            assert lun is not None
            catalog.insert_lun(target, f"serial-{number}", lun.id)
    luns = hypervisors.luns()
    catalog.close()
    network = "<disk type='network'><source protocol='iscsi' name='{}'><host name='192.0.2.7'/></source><target dev='vda'/></disk>"
    host = "<disk type='block'><source dev='/dev/disk/by-path/ip-192.0.2.7:3260-iscsi-iqn.2026-01.org.example:web-lun-1'/></disk>"
    names = ("iqn.2026-01.org.example:web/0", "iqn.2026-01.org.example:web", "iqn.2026-01.org.example:web/7", "iqn.2003-01.org.example:x/0")
    root = ElementTree.fromstring(domain("web", *(network.format(name) for name in names), host))
    found = disks_of(root, Place(tmp_path / "nbd.sock"), remote=True, luns=luns)
    web = ObjectName("web", "root")
    assert [one.export for one in found] == [web, web, None, None, ObjectName("web", "data")]
    assert names_vm(root, "web", luns) and not names_vm(root, "web", {}) and not names_vm(root, "we", luns)


def test_a_uri_that_names_another_machine_is_remote() -> None:
    assert not is_remote("qemu:///system") and not is_remote("qemu+unix:///system?socket=/x") and not is_remote("qemu+tcp://127.0.0.1/system")
    assert is_remote("qemu+ssh://192.0.2.1/system")
