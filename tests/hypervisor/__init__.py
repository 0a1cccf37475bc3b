"""Hypervisors through a real libvirt, whose daemon is the tests' own."""
