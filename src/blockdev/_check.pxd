"""Verifying a pool that is open: the walk over all maps that check and scrub make."""
