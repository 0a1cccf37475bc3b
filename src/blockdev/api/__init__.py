"""The control plane process: REST over the VMs of one home, its jobs, and the supervisor that keeps it alive."""
