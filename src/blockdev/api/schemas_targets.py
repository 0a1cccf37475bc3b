"""The bodies of /targets and /vms/{vm}/target, as schemas.py."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field, SecretStr

from blockdev.addresses import Address
from blockdev.api.schemas import SOME, Body, Name
from blockdev.targets.chap import SECRET_CHARACTERS, USER_CHARACTERS, Credential
from blockdev.targets.model import DEPTH, DEPTH_MAX, INITIATORS_MAX, IQN_BYTES_MAX, PORT, PORTALS_MAX, Target

Initiator = Annotated[str, Field(max_length=IQN_BYTES_MAX, description="who may log in", examples=["iqn.1993-08.org.debian:01:a1b2c3"])]
PortalText = Annotated[str, Field(max_length=64, description=f"ADDR[:PORT], port {PORT} unless another is given", examples=["192.0.2.7:3260"])]
Initiators = Annotated[list[Initiator], Field(max_length=INITIATORS_MAX)]
Portals = Annotated[list[PortalText], Field(min_length=1, max_length=PORTALS_MAX)]
Depth = Annotated[int, Field(ge=1, le=DEPTH_MAX, description="commands that an initiator may have under way")]
Insecure = Annotated[bool, Field(description="listen off loopback although not both initiators and a CHAP secret are asked for")]
Demo = Annotated[bool, Field(description="any initiator may log in")]
Snapshots = Annotated[list[Name], Field(max_length=1000, description="their disks are read-only LUNs, too")]


class ChapCredential(Body):
    """In no answer, log, event or history."""

    user: str = Field(max_length=USER_CHARACTERS[-1])
    secret: SecretStr = Field(description=f"{SECRET_CHARACTERS[0]} to {SECRET_CHARACTERS[-1]} ASCII characters without spaces")

    def credential(self) -> Credential:
        return Credential(self.user, self.secret.get_secret_value())


class NewTarget(Body):
    """Without `initiators` and `demo` nobody can log in yet."""

    initiators: Initiators = Field(default=[])
    portals: Portals | None = Field(None, description=f"absent: 127.0.0.1:{PORT} alone")
    chap: ChapCredential | None = Field(None, description="what initiators prove themselves by")
    mutual: ChapCredential | None = Field(None, description="what the target proves itself by")
    depth: Depth = DEPTH
    demo: Demo = False
    snapshots: Snapshots = Field(default=[])
    insecure: Insecure = False


class TargetChange(Body):
    """What is absent stays; lists are whole ones; `chap` and `mutual` null: none from now on."""

    model_config = SOME

    initiators: Initiators | None = None
    portals: Portals | None = None
    chap: ChapCredential | None = None
    mutual: ChapCredential | None = None
    depth: Depth | None = None
    demo: Demo | None = None
    snapshots: Snapshots | None = None
    insecure: Insecure = False


class TargetList(BaseModel):
    targets: list[Target]
    next: str | None = Field(description="`after` of the next page; null: this is the last one")


def parse_portals(texts: list[str] | None) -> list[tuple[str, int]] | None:
    """InvalidArgument."""
    return None if texts is None else [(one.host, one.port) for one in (Address.parse(text, PORT) for text in texts)]
