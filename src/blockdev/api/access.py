"""Who asks, and what each role may: the one table of the least role of each route.

Over the owner's Unix socket the caller is the owner, an admin.  Over TCP it is the token's name and role (tokens.py).
A route that the table does not name is for admins: what was forgotten is refused, not allowed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from fastapi import Depends, Request

from blockdev.errors import NotAllowed

Role = Literal["scraper", "viewer", "operator", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)  # each may what those before it may

# Routes by the names of their functions.  A viewer changes nothing and sees no configuration, which may hold secrets.
# What an operator does can be undone, but for deleting snapshots.  What loses disks, or concerns all VMs, is for admins.
LEAST: dict[Role, frozenset[str]] = {
    "scraper": frozenset({"show_metrics"}),  # for Prometheus, whose token lies in its configuration
    "viewer": frozenset(
        {
            *("list_vms", "show_vm", "show_vm_usage"),
            *("list_snapshots", "show_snapshot", "diff_snapshot", "preview_restore"),
            *("show_default_schedules", "show_vm_schedules", "preview_schedules", "show_schedule_settings", "list_coverage"),
            *("show_vm_statistics", "show_vm_statistics_now", "list_statistics", "show_pool_statistics"),
            *("show_status", "list_attachments", "show_usage", "show_serving"),
            *("list_jobs", "show_job", "list_events", "show_caller"),
            *("list_targets", "show_target"),
            *("list_hypervisors", "show_hypervisor", "show_domain"),
            *("show_identity", "list_peers", "show_peer", "list_paths", "show_path"),
            *("list_replications", "list_transfers", "list_protections", "show_replication", "list_samples"),
        }
    ),
    "operator": frozenset(
        {
            *("create_vm", "change_vm", "get_config", "export_vm", "clone_vm", "restore_vm"),
            *("add_disk", "import_disk", "export_disk"),
            *("create_snapshot", "change_snapshot", "delete_snapshot"),
            *("export_snapshot", "import_snapshot", "inspect_stream"),
            *("replace_vm_schedules", "use_default_schedules", "put_vm_schedule", "remove_vm_schedule", "run_schedule"),
            *("check_pool", "scrub_pool", "compact_pool", "cancel_job"),
            *("discover_one", "discover_all"),
            *("test_path", "protect_vm", "replicate_vm", "pause_vm", "resume_vm", "clone_vm_there", "copy_vm"),
        }
    ),
    "admin": frozenset(
        {
            "set_config",  # a registration makes a domain of it, which may name programs and files of the hypervisor
            *("delete_vm", "resize_disk", "remove_disk", "change_pool"),
            *("replace_default_schedules", "put_default_schedule", "remove_default_schedule", "change_schedule_settings"),
            *("list_tokens", "add_token", "remove_token", "add_code"),
            *("add_target", "change_target", "remove_target"),
            *("add_hypervisor", "remove_hypervisor", "register_vms", "unregister_vm"),
            *("add_peer", "change_peer", "remove_peer", "invite_peer", "add_path", "change_path", "remove_path"),
            *("unprotect_vm", "promote_vm", "reverse_vm", "receive_vm"),  # by which a site is lost, or two have one VM
        }
    ),
}


@dataclass(frozen=True)
class Caller:
    """Who sent a request: `request.state.caller`."""

    name: str  # "owner", or the token's
    role: Role

    def may(self, least: Role) -> bool:
        return ROLES.index(self.role) >= ROLES.index(least)


OWNER = Caller("owner", "admin")


def least_role(route: str) -> Role:
    """Of the route whose function is called so."""
    return next((role for role in ROLES if route in LEAST[role]), "admin")


async def authorise(request: Request) -> None:
    """A dependency of all routes.  Raises NotAllowed when the caller's role is too low."""
    caller, least = await caller_of(request), least_role(request.scope["route"].name)
    if not caller.may(least):
        raise NotAllowed(f"{request.method} {request.url.path} needs the role {least}: token {caller.name} has {caller.role}")


async def caller_of(request: Request) -> Caller:
    caller = request.state.caller
    assert isinstance(caller, Caller)
    return caller


Asking = Annotated[Caller, Depends(caller_of)]  # a parameter of routes that look at who asks
