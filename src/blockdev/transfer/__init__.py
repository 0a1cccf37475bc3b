"""Disk images in and out of the pool, through qemu-img and NBD."""
