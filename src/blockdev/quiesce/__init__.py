"""Freezing a guest's file systems around a snapshot, through the QEMU guest agent (docs/quiesce.md).

`freeze.frozen` is what others use.  Nothing is imported here: the watchdog's start waits for this package's imports.
"""
