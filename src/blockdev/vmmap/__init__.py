"""What the pool's objects mean: VMs, their disks, snapshots, clones and configurations."""
