"""VM operations: the service, its catalog, and how it comes back into agreement with the pool."""
