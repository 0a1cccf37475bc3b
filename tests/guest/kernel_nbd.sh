# Runs in the guest: works on a disk through the kernel's NBD client, in steps that the machine watches.
# Arguments: HOST PORT EXPORT.
set -eu
host=$1 port=$2 export=$3

tell_and_wait() {
    : >"$LAB_SHARE/$1"
    while [ ! -e "$LAB_SHARE/$1-seen" ]; do sleep 0.05; done
}

nbd-client "$host" "$port" /dev/nbd0 -N "$export" >&2
mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 /mnt
head -c 4M /dev/urandom >/mnt/trimmed
head -c 1M /dev/urandom >/mnt/kept
sync -f /mnt
tell_and_wait written
rm /mnt/trimmed
sync -f /mnt
fstrim /mnt
tell_and_wait trimmed
sha256sum /mnt/kept
umount /mnt
e2fsck -fn /dev/nbd0 >&2
tell_and_wait unmounted

nbd-client "$host" "$port" /dev/nbd1 -N "$export@after" >&2
cat /sys/block/nbd1/ro
mount -o ro /dev/nbd1 /mnt
sha256sum /mnt/kept
umount /mnt
nbd-client -d /dev/nbd1 >&2
nbd-client -d /dev/nbd0 >&2
