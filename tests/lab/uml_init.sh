#!/bin/sh
# First process of the User-Mode-Linux guest, on the machine's own tree (hostfs): puts it under a scratch overlay, which becomes the root.
# LAB_SHARE_ON_HOST and LAB_MODULES_ON_HOST come from the kernel's command line.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs scratch /mnt
insmod "$LAB_MODULES_ON_HOST/$(uname -r)/kernel/fs/overlayfs/overlay.ko"
mkdir /mnt/upper /mnt/work /mnt/new
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/new
cd /mnt/new || exit
mkdir -p lib/modules
for directory in proc sys; do mount --rbind "/$directory" $directory; done
mount -t devtmpfs dev dev
mount -t tmpfs run run
mkdir -p dev/pts dev/shm run/lock run/lab
mount -t devpts pts dev/pts
mount -t tmpfs shm dev/shm
ln -s /proc/self/fd dev/fd   # no udev does it
for name in stdin:0 stdout:1 stderr:2; do ln -s fd/${name#*:} dev/${name%:*}; done
mount -t cgroup2 cgroup sys/fs/cgroup
mount --bind "$LAB_MODULES_ON_HOST" lib/modules
mount -t hostfs -o "$LAB_SHARE_ON_HOST" share run/lab
# not chroot: the kernel starts modprobe itself, and must find the modules in the root that it knows
pivot_root . mnt
cd /
ip link set lo up
hostname guest
for line in /dev/ttyS0 /dev/ttyS1; do stty -F $line raw -echo; done   # no terminal changes the bytes
export LAB_OUT=/dev/ttyS0 LAB_ERR=/dev/ttyS1
exec /bin/sh /run/lab/.stage2
