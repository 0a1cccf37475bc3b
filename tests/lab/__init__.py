"""The lab guest: runs commands in a QEMU guest on Debian's stock kernel, which sees the machine's own files."""
