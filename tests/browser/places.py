"""The console's pages, by what a person calls them; `{}` is a VM, with a disk data and a snapshot monday."""

from __future__ import annotations

PAGES = {
    "vms": "/",
    "vm": "/vms/{}",
    "new-vm": "/new-vm",
    "add-disk": "/vms/{}/add-disk",
    "change-disk": "/vms/{}/disks/data/change",
    "snapshot": "/vms/{}/snapshot",
    "snapshot-taken": "/vms/{}/snapshots/monday",
    "clone": "/vms/{}/clone",
    "restore": "/vms/{}/restore?snapshot=monday",
    "attach": "/vms/{}/attach",
    "rename": "/vms/{}/rename",
    "delete": "/vms/{}/delete",
    "protect": "/vms/{}/protect",
    "vm-replication": "/vms/{}/replication",
    "target": "/vms/{}/target",
    "pool": "/pool",
    "replication": "/replication",
    "path": "/replication/paths/site-b",
    "path-new": "/replication/new-path",
    "peer": "/replication/peers/site-c",
    "peer-new": "/replication/new-peer",
    "targets": "/targets",
    "activity": "/activity",
    "settings": "/settings",
}


def address(name: str, vm: str) -> str:
    return PAGES[name].format(vm)
