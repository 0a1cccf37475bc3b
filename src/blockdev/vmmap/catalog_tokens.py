"""The catalog's tokens: who may ask over TCP (docs/format/catalog.md).  Only a token's digest is kept."""

from __future__ import annotations

from typing import Any, NamedTuple

from blockdev.vmmap.database import Database


class TokenRow(NamedTuple):
    id: int
    name: str
    role: Any  # a word of api.access.Role
    digest: bytes  # SHA-256 of the token
    created: str
    expires: str | None  # None: never


class TokenRecords(Database):
    """Reads and writes of the table `token`."""

    def tokens(self) -> list[TokenRow]:
        return self._rows(TokenRow, "SELECT * FROM token ORDER BY id")

    def token(self, name: str) -> TokenRow | None:
        return self._row(TokenRow, "SELECT * FROM token WHERE name = ?", name)

    def tokens_page(self, after: str, count: int) -> list[TokenRow]:
        """By name, those after the name `after`."""
        return self._rows(TokenRow, "SELECT * FROM token WHERE name > ? ORDER BY name LIMIT ?", after, count)

    def insert_token(self, name: str, role: str, digest: bytes, created: str, expires: str | None) -> None:
        self._do(
            "INSERT INTO token (name, role, digest, created, expires) VALUES (?, ?, ?, ?, ?)",
            *(name, role, digest, created, expires),
        )

    def delete_token(self, token_id: int) -> None:
        self._do("DELETE FROM token WHERE id = ?", token_id)
