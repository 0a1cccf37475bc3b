#!/bin/busybox sh
# First process of the guest, from the initramfs: the machine's tree under a scratch overlay becomes the root.
b=/bin/busybox
$b mkdir -p /proc /sys /dev /lower /scratch /new
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for module in $($b cat /modules/order); do $b insmod "/modules/$module"; done
options=trans=virtio,version=9p2000.L,msize=512000
$b mount -t 9p -o $options,ro,cache=loose lab.root /lower
$b mount -t tmpfs scratch /scratch
$b mkdir /scratch/upper /scratch/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/scratch/upper,workdir=/scratch/work overlay /new
for directory in proc sys dev; do
    $b mkdir -p /new/$directory
    $b mount --move /$directory /new/$directory
done
$b mkdir -p /new/dev/pts /new/dev/shm /new/lib/modules
$b mount -t devpts pts /new/dev/pts
$b mount -t tmpfs shm /new/dev/shm
$b ln -s /proc/self/fd /new/dev/fd   # no udev does it
$b mount -t cgroup2 cgroup /new/sys/fs/cgroup
$b mount -t tmpfs run /new/run
$b mkdir -p /new/run/lock /new/run/lab
$b mount -t 9p -o $options,ro,cache=loose lab.modules /new/lib/modules
# not cached: host and guest tell each other of events through files here
$b mount -t 9p -o $options,cache=none lab.share /new/run/lab
# here, because Busybox in memory starts several times faster than programs of the new root
$b ip link set lo up
$b ip addr add 10.0.2.15/24 dev eth0
$b ip link set eth0 up
$b ip route add default via 10.0.2.2
$b hostname guest
exec $b switch_root /new /bin/sh /run/lab/.stage2
