"""A stock kernel finds the seed of a customized clone by its label, and mounts it by either of its extensions."""

from __future__ import annotations

import json
from pathlib import Path

from tests.guest.conftest import ServedHome
from tests.lab.guest import run
from tests.lab.qemu import Drive, Machine

USER_DATA = "#!/bin/sh\necho @hostname@ é\n"
# As cloud-init does it: blkid finds the label, `auto` the file system.  norock leaves Joliet.
LOOK = """
set -e
device=$(blkid -o device -t LABEL=cidata)
for options in ro ro,norock; do
    mount -o $options,iocharset=utf8 "$device" /mnt
    (cd /mnt && for name in *; do echo "== $name"; cat "$name"; done)
    umount /mnt
done
"""


def test_a_stock_kernel_reads_a_seed(served_home: ServedHome, tmp_path: Path) -> None:
    home = served_home
    (tmp_path / "user").write_text(USER_DATA)
    home.ctl("vm", "create", "seeded", "--disk", "root=1M")
    templates = ["--user-data", str(tmp_path / "user"), "--hostname", "host-@number@"]
    made = json.loads(home.ctl("clone", "seeded", "seeded-1", "--customize", *templates, "--json"))
    drives = [Drive(home.uri("seeded-1/root")), Drive(home.uri("seeded-1/seed"), read_only=True)]
    result = run(["/bin/sh", "-c", LOOK], Machine(drives=drives, modules=["isofs", "nls_utf8"], time_limit_s=400))
    assert result.status == 0, result.describe()
    meta = f"instance-id: {made['vms'][0]['uuid']}\nlocal-hostname: host-1\n"
    once = f"== meta-data\n{meta}== user-data\n{USER_DATA.replace('@hostname@', 'host-1')}"
    assert result.stdout.decode() == once * 2
    home.ctl("vm", "delete", "seeded-1", "--yes")
    home.ctl("vm", "delete", "seeded", "--yes")
