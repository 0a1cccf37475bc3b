"""The bodies of requests and answers about hypervisors, as schemas.py."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from blockdev.api.schemas import CLONES_MAX, Body, Name
from blockdev.hypervisor.hypervisors import AT_ONCE, AT_ONCE_MAX, URI_CHARACTERS_MAX, Hypervisor
from blockdev.hypervisor.registration import Registered
from blockdev.vmmap.model import DomainState

AtOnce = Annotated[int, Field(ge=1, le=AT_ONCE_MAX, description="how many registrations go on at the same time")]


class NewHypervisor(Body):
    name: Name
    uri: str = Field(max_length=URI_CHARACTERS_MAX, description="libvirt's", examples=["qemu:///system"])
    at_once: AtOnce = AT_ONCE


class HypervisorList(BaseModel):
    hypervisors: list[Hypervisor]
    next: None = Field(description="always null: they are few")


class HypervisorRemoved(BaseModel):
    name: str
    uri: str


class NewRegistrations(Body):
    vms: list[Name] = Field(min_length=1, max_length=CLONES_MAX)
    at_once: AtOnce | None = Field(None, description="no more than the hypervisor's, which it is when absent")
    start: bool = Field(False, description="start the domains, too")


class RegistrationResults(BaseModel):
    """The result of a registration job."""

    hypervisor: str
    registrations: list[Registered]


class DomainView(BaseModel):
    """The domain of a VM."""

    vm: str
    hypervisor: str
    name: str
    uuid: str
    state: DomainState
    made: bool = Field(description="blockdev registered it; DELETE undefines it")
    is_running: bool | None = Field(description="null: the hypervisor does not answer")
    error: str | None = Field(description="why it does not, or that the domain is gone")
