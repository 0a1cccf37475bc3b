"""How to attach the LUNs of a target, in the words of those who will: open-iscsi, multipath, QEMU, libvirt, ESXi, Proxmox VE.

No secret is in it: names in <> are for the person to fill in.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

from blockdev.addresses import show_address, split_address
from blockdev.errors import InvalidArgument, NotFound

NAA_PREFIX = "6001405"  # LIO's company id; what follows are the first 25 digits of the serial
NAA_DIGITS = 25
INITIATOR = "<initiator's IQN>"
ANYWHERE = "<address of this machine>"


@dataclass(frozen=True)
class Lun:
    """One LUN to attach."""

    number: int
    export: str
    serial: str
    read_only: bool

    @property
    def naa(self) -> str:
        """As /dev/disk/by-id/wwn-0x... has it."""
        return NAA_PREFIX + self.serial.replace("-", "")[:NAA_DIGITS]


@dataclass(frozen=True)
class Offer:
    """A target as its initiator needs to know it."""

    iqn: str
    portals: Sequence[str]  # ADDR:PORT
    initiators: Sequence[str]
    chap_user: str | None
    mutual_user: str | None
    luns: Sequence[Lun]

    @property
    def initiator(self) -> str:
        return self.initiators[0] if self.initiators else INITIATOR


def offer_of(target: dict[str, object], disk: str | None, snapshot: str | None, host: str | None) -> Offer:
    """What the API tells of a target, of one disk alone or all.  NotFound: it is no LUN; InvalidArgument.

    host: from where it is reached, instead of the portals' own addresses.
    """
    luns = [
        Lun(one["number"], one["export"], one["serial"], one["snapshot"] is not None)
        for one in target["luns"]  # type: ignore[attr-defined]
        if disk is None or (one["disk"], one["snapshot"]) == (disk, snapshot)
    ]
    if disk is not None and not luns:
        add = f": blockdevctl target change {target['vm']} --snapshot {snapshot}" if snapshot else ""
        raise NotFound(f"{target['vm']}/{disk}{f'@{snapshot}' if snapshot else ''} is no LUN of {target['iqn']}{add}")
    portals = list(dict.fromkeys(_reached(str(one), host) for one in target["portals"]))  # type: ignore[attr-defined]
    users = [None if target[field] is None else str(target[field]) for field in ("chap_user", "mutual_user")]
    return Offer(str(target["iqn"]), portals, list(target["initiators"]), *users, luns)  # type: ignore[call-overload]


def _reached(portal: str, host: str | None) -> str:
    address, port = split_address(portal)
    if host is not None:
        if not host or any(one in host for one in " /'\""):
            raise InvalidArgument(f"{host!r} is not a host: give a name or an address")
        return show_address(host, port)
    return f"{ANYWHERE}:{port}" if ipaddress.ip_address(address).is_unspecified else portal


def describe(offer: Offer) -> str:
    """The text to paste from."""
    parts = [_open_iscsi(offer)]
    if len(offer.portals) > 1:
        parts.append(_multipath(offer))
    parts += [_qemu(offer), _libvirt(offer), _esxi(offer), _proxmox(offer)]
    return "\n\n".join(parts)


def _open_iscsi(offer: Offer) -> str:
    lines = [
        "# Linux (open-iscsi), as root; the initiator's name is in /etc/iscsi/initiatorname.iscsi" + _who(offer),
    ]
    if offer.chap_user is not None:
        lines += [
            "# first these lines in /etc/iscsi/iscsid.conf, mode 0600 (on a command line others would see the secret):",
            "#   node.session.auth.authmethod = CHAP",
            f"#   node.session.auth.username = {offer.chap_user}",
            "#   node.session.auth.password = <secret>",
        ]
    if offer.mutual_user is not None:
        lines += [
            f"#   node.session.auth.username_in = {offer.mutual_user}",
            "#   node.session.auth.password_in = <the target's secret>",
        ]
    lines += [f"iscsiadm -m discovery -t sendtargets -p {portal}" for portal in offer.portals[:1]]
    lines += [f"iscsiadm -m node -T {offer.iqn} --login"]
    lines += [f"ls -l /dev/disk/by-id/wwn-0x{lun.naa}   # LUN {lun.number}: {lun.export}{_access(lun)}" for lun in offer.luns]
    lines += [
        "# after a disk was added, removed or resized: iscsiadm -m session --rescan; to end it:",
        f"iscsiadm -m node -T {offer.iqn} --logout",
    ]
    return "\n".join(lines)


def _who(offer: Offer) -> str:
    return f" and must be {' or '.join(offer.initiators)}" if offer.initiators else ""


def _access(lun: Lun) -> str:
    return ", read-only" if lun.read_only else ""


def _multipath(offer: Offer) -> str:
    """All portals lead to one kernel, whose groups say which paths are good (ALUA)."""
    lines = [
        "# several portals (Debian: multipath-tools): in /etc/multipath.conf, then systemctl restart multipathd, before the login",
        "defaults {",
        "    find_multipaths yes         # the usual strict takes no LUN that it did not have before",
        "}",
        "devices {",
        "    device {",
        '        vendor "BLOCKDEV"',
        '        product "vdisk"',
        '        path_grouping_policy "group_by_prio"',
        '        prio "alua"',
        '        hardware_handler "1 alua"',
        '        path_checker "tur"',
        '        path_selector "service-time 0"',
        "        failback immediate",
        "        no_path_retry 60        # times 5 s: as long as a restart of the machine may take",
        "    }",
        "}",
        "multipaths {",
        *(
            line
            for lun in offer.luns
            for line in ("    multipath {", f"        wwid 3{lun.naa}", f"        alias {_alias(lun)}", "    }")
        ),
        "}",
        "# a dead path is given up about 15 s after the last word over it: open-iscsi asks every 5 s and waits 5 s for the answer, and",
        "# multipathd holds requests back for 5 s more (fast_io_fail_tmo, which goes before iscsid's replacement_timeout)",
    ]
    return "\n".join(lines)


def _alias(lun: Lun) -> str:
    return lun.export.replace("/", "-").replace("@", "-at-")


def _qemu(offer: Offer) -> str:
    if offer.mutual_user is not None:
        return "# QEMU's own iSCSI driver cannot check who the target is (mutual CHAP); it goes without"
    lines = ["# QEMU's own iSCSI driver (Debian: qemu-block-extra); qemu-img takes the URL, with the secret in LIBISCSI_CHAP_PASSWORD"]
    user = f"{offer.chap_user}@" if offer.chap_user else ""
    for lun in offer.luns:
        node: dict[str, object] = {
            "driver": "iscsi",
            "node-name": f"lun{lun.number}",
            "transport": "tcp",
            "portal": offer.portals[0],
            "target": offer.iqn,
            "lun": lun.number,
            "initiator-name": offer.initiator,
            "discard": "unmap",
        }
        if lun.read_only:
            node["read-only"] = True
        if offer.chap_user is not None:
            node |= {"user": offer.chap_user, "password-secret": "chap0"}
            if lun is offer.luns[0]:
                lines.append("-object secret,id=chap0,file=<file of the secret, without a newline> \\")
        lines.append(f"-blockdev '{json.dumps(node)}' \\")
        lines.append(f"-device virtio-blk-pci,drive=lun{lun.number} \\")
    lines[-1] = lines[-1].removesuffix(" \\")
    lines += [f"# iscsi://{user}{offer.portals[0]}/{offer.iqn}/{lun.number}" for lun in offer.luns]
    return "\n".join(lines)


def _libvirt(offer: Offer) -> str:
    host, port = split_address(offer.portals[0])
    lines = ["# libvirt: for virsh attach-device, or a domain's <devices>"]
    if offer.chap_user is not None:
        lines += [
            "# once: virsh secret-define of the next line, then virsh secret-set-value <UUID> --file <file of the secret> --plain",
            f"<secret private='yes'><usage type='iscsi'><target>{offer.iqn}</target></usage></secret>",
        ]
    for place, lun in enumerate(offer.luns):
        lines += [
            "<disk type='network' device='disk'>",
            "  <driver name='qemu' type='raw' discard='unmap'/>",
            f"  <source protocol='iscsi' name={quoteattr(f'{offer.iqn}/{lun.number}')}>",
            f"    <host name={quoteattr(host)} port='{port}'/>",
            *(
                [f"    <auth username={quoteattr(offer.chap_user)}><secret type='iscsi' usage={quoteattr(offer.iqn)}/></auth>"]
                if offer.chap_user
                else []
            ),
            f"    <initiator><iqn name={quoteattr(offer.initiator)}/></initiator>",
            "  </source>",
            f"  <target dev='vd{_letters(place)}' bus='virtio'/>",
            *(["  <readonly/>"] if lun.read_only else []),
            "</disk>",
        ]
    return "\n".join(lines)


def _letters(place: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    return (_letters(place // 26 - 1) if place >= 26 else "") + chr(ord("a") + place % 26)


def _esxi(offer: Offer) -> str:
    lines = [
        "# ESXi: after esxcli iscsi software set --enabled=true, the IQN that esxcli iscsi adapter list shows must be one of the",
        "# target's initiators; then, with the adapter's name for vmhba64:",
        *(f"esxcli iscsi adapter discovery sendtarget add --adapter=vmhba64 --address={portal}" for portal in offer.portals),
    ]
    if offer.chap_user is not None:
        kind = "bidirectional" if offer.mutual_user is not None else "unidirectional"
        lines.append(
            f"# before the rescan: Storage Adapters, vmhba64, Dynamic Discovery, Authentication, not inherited: use {kind} CHAP, "
            f"outgoing name {offer.chap_user}" + (f", incoming name {offer.mutual_user}" if offer.mutual_user is not None else "")
        )
    if len(offer.portals) > 1:
        lines += [
            "# all paths in turn, for each LUN that is seen from then on; the usual policy for ALUA (VMW_PSP_MRU) stays with one path",
            "esxcli storage nmp satp rule add --satp=VMW_SATP_ALUA --psp=VMW_PSP_RR --claim-option=tpgs_on --vendor=BLOCKDEV --model=vdisk",
        ]
    lines += [
        "esxcli storage core adapter rescan --adapter=vmhba64",
        "# naa." + ", naa.".join(lun.naa for lun in offer.luns),
        "# a clone or restored copy that holds a VMFS is a snapshot to ESXi: esxcli storage vmfs snapshot list, then",
        "# esxcli storage vmfs snapshot resignature --volume-label=<its label>",
    ]
    return "\n".join(lines)


def _proxmox(offer: Offer) -> str:
    """It logs in to all portals by itself; a volume is a link below /dev/disk/by-id.  Under multipath scsi-3... and dm-uuid-mpath-3... lead
    to the multipath device, and scsi-S... to one path."""
    lines = [
        "# Proxmox VE: each node's name (/etc/iscsi/initiatorname.iscsi) is an initiator of the target, CHAP is set in its iscsid.conf"
        + (", and the multipath.conf above is there; then" if len(offer.portals) > 1 else "; then"),
        f"pvesm add iscsi blockdev --portal {offer.portals[0]} --target {offer.iqn} --content images",
    ]
    lines += [f"qm set <VMID> --scsi{place} blockdev:0.0.{lun.number}.scsi-3{lun.naa}" for place, lun in enumerate(offer.luns)]
    other = "dm-uuid-mpath-3" if len(offer.portals) > 1 else "scsi-SBLOCKDEV_vdisk_"
    lines.append(f"# pvesm list blockdev may show other links of the same disks ({other}...): either will do")
    lines.append("# two nodes must not run a VM with one of these disks at the same time; snapshots are blockdevctl's: snapshot create")
    return "\n".join(lines)
