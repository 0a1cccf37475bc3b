"""Statistics of VMs: totals that never go backwards, and their history in files of a fixed size (docs/statistics.md)."""
