# Runs in the guest: mounts the disk whose cache is volatile, then serves the home on it (power_cut_guest.py).
# Arguments: the interpreter and the file system; then, for an engine with a planted bug: the package to change, the
# directory of the extensions that can have one, and the bug's number.  The guest forgets what is changed there.
set -eu
python=$1 file_system=$2 package=${3-} extensions=${4-} bug=${5-}

# dirty pages go to the disk all the time, not after seconds: the volatile cache is never empty under load
echo 10 >/proc/sys/vm/dirty_writeback_centisecs
echo 10 >/proc/sys/vm/dirty_expire_centisecs
if [ -n "$bug" ]; then
    cp "$extensions"/*.so "$package"
    printf 'from blockdev import _medium\n_medium.plant(%s)\n' "$bug" >>"$package/__init__.py"
fi
: >"$LAB_SHARE/mounting"
mount -t "$file_system" /dev/vda /mnt
exec "$python" "$(dirname "$0")/power_cut_guest.py" /mnt/home
