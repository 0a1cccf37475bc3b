"""Types of the compiled module; what things mean is in _actions.pxd."""

from enum import IntFlag

class RecordType(IntFlag):
    CREATE = 1
    SNAPSHOT = 2
    CLONE = 3
    RESTORE = 4
    RELABEL = 5
    DELETE = 6
    RESIZE = 7
    POLICY = 8
