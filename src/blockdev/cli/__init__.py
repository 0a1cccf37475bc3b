"""blockdevctl: what a person types.  A client of the REST API and nothing else, except init and serve."""
