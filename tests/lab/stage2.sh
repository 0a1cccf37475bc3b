# Second stage of the guest, in its final root: wires the outputs, runs the job, leaves its status, powers off.
cd /
out=$LAB_OUT err=$LAB_ERR   # of a User-Mode-Linux guest; those of QEMU's have names
for port in /sys/class/virtio-ports/*; do
    read -r name <"$port/name" || continue
    case $name in
        lab.out) out=/dev/${port##*/} ;;
        lab.err) err=/dev/${port##*/} ;;
    esac
done
exec </dev/null >"$out" 2>"$err"   # raw byte channels
unset LAB_OUT LAB_ERR LAB_SHARE_ON_HOST LAB_MODULES_ON_HOST
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LAB_SHARE=/run/lab
while read -r module; do
    modprobe "$module" || echo "lab guest: no kernel module $module" >&2
done </run/lab/.modules
sh /run/lab/.job
echo $? >/run/lab/.status.new
case $out in /dev/ttyS*) stty -F "$out" -echo && stty -F "$err" -echo ;; esac   # waits until all is out: else it is lost
mv /run/lab/.status.new /run/lab/.status
sync
echo 1 >/proc/sys/kernel/sysrq
echo o >/proc/sysrq-trigger
sleep 60
