"""Replication: each part, and two homes that replicate to each other over real SSH."""
