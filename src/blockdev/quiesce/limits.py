"""How long a guest may be frozen.  No imports, for those who only ask."""

LIMIT_SECONDS = 10  # Windows releases a freeze after 10 s by itself (VSS, Flush and Hold)
LIMIT_SECONDS_MAX = 60
