# Runs in the guest: works on disks through the kernel's NBD client and on a virtio disk, in steps that the machine watches.
# Arguments: the commands, for /dev/nbd0, that attach a blank disk, its snapshot `after`, and a disk with files; a file to fill /dev/vda with.
set -eu
attach_disk=$1 attach_snapshot=$2 attach_files=$3 filler=$4

tell_and_wait() {
    : >"$LAB_SHARE/$1"
    while [ ! -e "$LAB_SHARE/$1-seen" ]; do sleep 0.05; done
}

$attach_disk >&2
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
nbd-client -d /dev/nbd0 >&2
tell_and_wait detached

$attach_snapshot >&2
cat /sys/block/nbd0/ro
mount -o ro /dev/nbd0 /mnt
sha256sum /mnt/kept
umount /mnt
nbd-client -d /dev/nbd0 >&2

$attach_files >&2
mount /dev/nbd0 /mnt
cat /mnt/greeting
umount /mnt
nbd-client -d /dev/nbd0 >&2

mkfs.ext4 -q /dev/vda
mount /dev/vda /mnt
cp "$filler" /mnt/filler
sync -f /mnt
tell_and_wait filled
rm /mnt/filler
sync -f /mnt
fstrim /mnt
tell_and_wait emptied
umount /mnt
e2fsck -fn /dev/vda >&2
