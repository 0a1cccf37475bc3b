"""Hypervisors that run VMs, through libvirt (docs/hypervisors.md).

Only connection.py knows libvirt's library, and only calls.py loads it, when a hypervisor is used.  Nothing is imported here:
the watchdog of a freeze, which may load this package, is to start fast.
"""
