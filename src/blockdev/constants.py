"""Numbers and names that the whole package shares.  Layout numbers of the on-disk format live in the .pxd files
of the extension that writes them (see docs/format/pool.md)."""

BLOCK_BYTES = 4096  # the unit of mapping and dedup
SECTOR_BYTES = 512  # the unit of the protocols
VDISK_BYTES_MAX = 1 << 46  # 64 TiB
REQUEST_BYTES_MAX = 32 << 20  # NBD's usual limit

NAME_BYTES_MAX = 255  # an object's name (export name), UTF-8
TAG_BYTES_MAX = 1024  # an object's opaque tag
SEGMENT_BYTES = 64 << 20

FORMAT_VERSION = 2
DURATION_SECONDS_MAX = 100 * 366 * 86400  # that something is kept or valid: a time that is so far away can be written down
KEEP_SECONDS_MIN = 60  # of a snapshot that goes by itself
CHUNK_EXTENTS_MAX = 1 << 16  # extents in one answer of the engine socket
INVITATION_SECONDS_MAX = 86400  # that the code of another home is valid
REPLICATION_PORT = 10810  # where peers reach a home, unless another is given
