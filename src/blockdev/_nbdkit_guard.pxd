"""Keeps nbdkit alive when a client goes away in the middle of its requests."""

# 0, or an errno when nbdkit's calls could not be redirected.  Before nbdkit serves; more than once does no harm.
cpdef int guard_connections() noexcept nogil
