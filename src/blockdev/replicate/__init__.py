"""Snapshots of protected VMs go to other homes: over which paths, in which words, when, and what came of it (docs/replication.md)."""
