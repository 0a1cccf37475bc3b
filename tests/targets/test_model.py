"""What targets can be asked to be, how their secrets are kept, and how they are attached."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest
from blockdev.targets import attach_iscsi, chap, model
from blockdev.targets.chap import ChapFiles, Credential, Credentials
from blockdev.targets.claim import Claim

from blockdev.errors import InvalidArgument, NotFound

SECRET, OTHER = "topsecret12345", "othersecret12345"
HOME_ID = "0c0c6b9a-3c11-4c4e-9a39-0b6f6d2f3b33"
VM_UUID = "8d0c6b9a-3c11-4c4e-9a39-0b6f6d2f3b11"
INITIATOR = "iqn.1993-08.org.debian:01:a1b2c3"
OUTSIDE = [model.Portal("127.0.0.1", 3260), model.Portal("192.0.2.7", 3260)]


def test_an_iqn_has_the_home_and_the_vm_in_characters_that_it_may_have() -> None:
    assert model.target_iqn(HOME_ID, "Web_1.a", VM_UUID) == "iqn.2026-11.io.blockdev:0c0c6b9a:web-1.a.8d0c6b9a"
    longest = model.target_iqn(HOME_ID, "W" * 63, VM_UUID)
    assert len(longest) < model.IQN_BYTES_MAX and model.INITIATOR.fullmatch(longest)


def test_initiators_are_normalised_and_what_is_no_name_of_one_is_refused() -> None:
    names = [INITIATOR.upper(), INITIATOR, "iqn.1991-05.com.microsoft:host.example.com", "eui.02004567A425678D"]
    assert model.check_initiators(names) == [INITIATOR, names[2], "eui.02004567a425678d"]
    for name in ("", "me", "iqn.1993-13.org.debian:x", "iqn.1993-08.org.debian:a b", "iqn.1993-08.org.debian:a/b", "../x", "eui.0"):
        with pytest.raises(InvalidArgument, match="not an initiator's name"):
            model.check_initiators([name])


def test_portals_are_addresses_each_once() -> None:
    portals = [("127.0.0.1", 3260), ("127.0.0.1", 3260), ("::1", 3261)]
    assert [str(one) for one in model.check_portals(portals)] == ["127.0.0.1:3260", "[::1]:3261"]
    assert model.check_portals([("::ffff:192.0.2.7", 3260)]) == [("192.0.2.7", 3260)], "LIO would tell initiators of it without brackets"
    for portals in ([], [("example.com", 3260)], [("127.0.0.1", port) for port in range(1, 18)]):
        with pytest.raises(InvalidArgument):
            model.check_portals(portals)


@pytest.mark.parametrize(
    ("initiators", "demo", "has_chap"), [([], False, True), ([INITIATOR], False, False), ([INITIATOR], True, True)]
)
def test_off_loopback_both_names_and_a_secret_are_asked_for(initiators: list[str], demo: bool, has_chap: bool) -> None:
    model.refuse_exposed(OUTSIDE[:1], initiators, demo, has_chap)
    model.refuse_exposed(OUTSIDE, [INITIATOR], False, True)
    with pytest.raises(InvalidArgument, match=r"192\.0\.2\.7:3260 is reached from other machines.*--insecure"):
        model.refuse_exposed(OUTSIDE, initiators, demo, has_chap)


@pytest.mark.parametrize("secret", ["", "short", "a" * 256, "with a space in it", "NULLnullnullnull", "schlüssel-schlüssel"])
def test_a_secret_that_cannot_be_used_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(InvalidArgument, match="CHAP secret cannot be used") as refused:
        chap.check(Credentials(Credential("me", secret)))
    assert not secret or secret not in str(refused.value)


def test_mutual_chap_needs_chap_and_another_secret() -> None:
    chap.check(Credentials(Credential("me", SECRET), Credential("target", OTHER)))
    for both in (Credentials(None, Credential("target", OTHER)), Credentials(Credential("me", SECRET), Credential("target", SECRET))):
        with pytest.raises(InvalidArgument):
            chap.check(both)


def test_secrets_are_in_files_of_their_owner_alone_and_in_no_text(tmp_path: Path) -> None:
    files = ChapFiles(tmp_path / "targets")
    files.keep_only([])  # of no directory
    both = Credentials(Credential("me", SECRET), Credential("target", OTHER))
    name = files.write(both)
    assert files.read(name) == both and SECRET not in f"{both} {both!r}" and OTHER not in f"{both!r}"
    assert stat.S_IMODE((tmp_path / "targets").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "targets" / name).stat().st_mode) == 0o600
    other = files.write(Credentials(Credential("me", OTHER)))
    files.keep_only([other])
    assert [path.name for path in (tmp_path / "targets").iterdir()] == [other]
    with pytest.raises(NotFound, match="secrets are missing"):
        files.read(name)
    (tmp_path / "targets" / other).write_text(f"{{{SECRET}")
    with pytest.raises(NotFound) as missing:
        files.read(other)
    assert SECRET not in str(missing.value)


def test_what_somebody_else_put_beside_the_secrets_is_left_there(tmp_path: Path) -> None:
    files = ChapFiles(tmp_path)
    name = files.write(Credentials(Credential("me", SECRET)))
    (tmp_path / "db.secret").write_text("somebody's")
    (tmp_path / "before").mkdir()
    files.keep_only([])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "db.secret"] and len(name) == 16


def test_one_home_of_a_machine_has_the_targets_of_a_pool_and_a_copy_is_told_which(tmp_path: Path) -> None:
    first, second = (Claim("0c0c6b9a", Path(f"/srv/{name}"), tmp_path / "locks") for name in ("first", "copy"))
    assert first.missing() is None and first.missing() is None
    assert "those of /srv/first" in str(second.missing())
    assert Claim("1d0c6b9a", Path("/srv/other"), tmp_path / "locks").missing() is None
    (tmp_path / "file").touch()
    assert "cannot be opened" in str(Claim("0c0c6b9a", Path("/srv/web"), tmp_path / "file").missing())
    first.release()
    assert second.missing() is None and "those of /srv/copy" in str(first.missing())
    assert stat.S_IMODE((tmp_path / "locks").stat().st_mode) == 0o700


TARGET = {
    "vm": "web",
    "iqn": "iqn.2026-11.io.blockdev:0c0c6b9a:web.8d0c6b9a",
    "portals": ["192.0.2.7:3260", "[::]:3261"],
    "initiators": [INITIATOR],
    "chap_user": "me",
    "mutual_user": None,
    "luns": [
        {"number": 0, "disk": "root", "snapshot": None, "export": "web/root", "serial": "3a62ddde-7c7c-5589-a72c-10e26570c503"},
        {"number": 3, "disk": "root", "snapshot": "s1", "export": "web/root@s1", "serial": "4a62ddde-7c7c-5589-a72c-10e26570c503"},
    ],
}


def test_a_target_is_attached_by_the_names_that_the_kernel_gives_its_luns() -> None:
    text = attach_iscsi.describe(attach_iscsi.offer_of(TARGET, None, None, None))
    assert "/dev/disk/by-id/wwn-0x60014053a62ddde7c7c5589a72c10e26   # LUN 0: web/root\n" in text
    assert "wwid 360014054a62ddde7c7c5589a72c10e26" in text and "<address of this machine>:3261" in text
    assert "node.session.auth.username = me" in text and "password-secret" in text and '"read-only": true' in text
    for word in ("iscsiadm", "multipaths {", "qemu-block-extra", "<disk type='network'", "esxcli", "pvesm add iscsi"):
        assert word in text


def test_proxmox_ve_is_given_the_port_and_multipath_takes_what_it_did_not_have_before() -> None:
    text = attach_iscsi.describe(attach_iscsi.offer_of({**TARGET, "portals": ["192.0.2.7:3261", "192.0.2.8:3261"]}, None, None, None))
    assert "pvesm add iscsi blockdev --portal 192.0.2.7:3261 --target" in text
    assert "satp rule add --satp=VMW_SATP_ALUA --psp=VMW_PSP_RR" in text, "ESXi stays with one path by default"
    assert "find_multipaths yes" in text, "Debian's default makes no map of a LUN that it sees for the first time"


def test_libvirt_defines_the_printed_disks_and_the_printed_secret(tmp_path: Path) -> None:
    text = attach_iscsi.describe(attach_iscsi.offer_of(TARGET, None, None, None))
    secret = next(line for line in text.splitlines() if line.startswith("<secret"))
    disks = text[text.index("<disk") : text.rindex("</disk>") + len("</disk>")]
    domain = f"<domain type='test'><name>web</name><memory>65536</memory><os><type>hvm</type></os><devices>{disks}</devices></domain>"
    for uri, command, xml in (
        ("test:///default", ["define", "--validate"], domain),
        (f"secret:///embed?root={tmp_path}", ["secret-define", "--validate"], secret),
    ):
        file = tmp_path / f"{command[0]}.xml"
        file.write_text(xml)
        done = subprocess.run(["virsh", "-c", uri, *command, "--file", file], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        file.write_text(xml.replace("iscsi", "icsci"))
        done = subprocess.run(["virsh", "-c", uri, *command, "--file", file], capture_output=True, text=True, timeout=300)
        assert done.returncode != 0, f"{uri} takes anything"


def test_one_disk_alone_is_attached_from_another_address_without_multipath() -> None:
    target = {**TARGET, "portals": ["127.0.0.1:3260"], "chap_user": None}
    offer = attach_iscsi.offer_of(target, "root", "s1", "2001:db8::7")
    assert [lun.number for lun in offer.luns] == [3] and offer.portals == ["[2001:db8::7]:3260"]
    text = attach_iscsi.describe(offer)
    assert "multipath.conf" not in text and "VMW_PSP_RR" not in text and "CHAP" not in text.split("ESXi")[0].replace("LIBISCSI_CHAP_PASSWORD", "")
    assert "<host name=\"2001:db8::7\" port='3260'/>" in text
    with pytest.raises(NotFound, match=r"web/root@s2 is no LUN of .*--snapshot s2"):
        attach_iscsi.offer_of(TARGET, "root", "s2", None)
    with pytest.raises(InvalidArgument):
        attach_iscsi.offer_of(TARGET, None, None, "a 'b")
