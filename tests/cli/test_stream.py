"""blockdevctl snapshot export, import, inspect, and what changed at each snapshot, as a person meets them."""

from __future__ import annotations

from pathlib import Path

from tests.cli.served import Home, run_tool, until


def written(home: Home, export: str, pattern: int, offset: int) -> None:
    run_tool("qemu-io", "-f", "raw", "-c", f"write -P {pattern} {offset} 65536", "-c", "flush", home.uri(export))


def test_a_chain_is_exported_and_imported(home: Home, name: str, scratch: Path) -> None:
    home("vm", "create", name, "--disk", "root=16M")
    written(home, f"{name}/root", 1, 0)
    home("snapshot", "create", name, "--name", "one")
    written(home, f"{name}/root", 2, 1 << 20)
    home("snapshot", "create", name, "--name", "two")
    whole, changed = scratch / "one.bds", scratch / "two.bds"
    said = home("snapshot", "export", f"{name}@one", whole)
    assert f"exported {name}@one to {whole}: 64 KiB in " in said
    said = home("snapshot", "export", f"{name}@two", changed, "--since", f"{name}@one", "--level", "19")
    assert f"exported {name}@two, what changed since one, to {changed}" in said
    told = home("snapshot", "inspect", changed)
    uuid = home.json("snapshot", "show", f"{name}@one")["uuid"]
    assert f"{name}@one, uuid {uuid}" in told and "every byte" in told and "its base" in told
    assert "nothing: it is whole" in home("snapshot", "inspect", whole)
    said = home("snapshot", "import", whole, "--vm", f"{name}-b", "--keep", "3d")
    assert f"imported {whole} as VM {name}-b with snapshot {name}-b@one" in said
    found = home.json("snapshot", "import", changed, "--vm", f"{name}-b", "--name", "second")
    assert (found["made"]["name"], found["made_vm"], found["data_bytes"]) == ("second", False, 65536)
    assert home.json("snapshot", "show", f"{name}-b@one")["expires"]
    run_tool("qemu-img", "compare", "-f", "raw", "-F", "raw", home.uri(f"{name}/root@two"), home.uri(f"{name}-b/root@second"))


def test_mistakes_are_refused_in_one_line(home: Home, name: str, scratch: Path) -> None:
    home("vm", "create", name, "--disk", "root=16M")
    home("snapshot", "create", name, "--name", "one")
    file = scratch / "one.bds"
    home("snapshot", "export", f"{name}@one", file)
    assert home.run("snapshot", "export", f"{name}@one", file).status == 4
    refused = home.run("snapshot", "export", f"{name}@one", file, "--overwrite")
    assert refused.status == 2 and "--yes" in refused.error
    home("snapshot", "export", f"{name}@one", file, "--overwrite", "--yes")
    assert home.run("snapshot", "export", f"{name}@one", scratch / "x", "--since", "other@one").status == 2
    assert home.run("snapshot", "export", f"{name}@one", scratch / "x", "--level", "20").status == 2
    assert home.run("snapshot", "import", file).status == 4
    file.write_bytes(file.read_bytes()[:-1])
    refused = home.run("snapshot", "inspect", file)
    assert refused.status == 8 and "cut off at byte" in refused.error
    file.write_bytes(b"QFI\xfb" + bytes(100))
    assert "no stream file" in home.run("snapshot", "import", file).error


def test_what_changed_is_shown_once_it_was_counted(home: Home, name: str) -> None:
    home("vm", "create", name, "--disk", "root=16M")
    written(home, f"{name}/root", 1, 0)
    home("snapshot", "create", name, "--name", "one")
    written(home, f"{name}/root", 2, 0)
    written(home, f"{name}/root", 3, 1 << 20)
    home("snapshot", "create", name, "--name", "two")

    def counted() -> list[int | None]:
        return [one["changed_bytes"] for one in home.json("snapshot", "list", name)["snapshots"]]

    until(lambda: None not in counted(), "a count")
    assert counted() == [65536, 131072]
    assert "CHANGED" in home("snapshot", "list", name) and "128 KiB" in home("snapshot", "list", name)
    assert "128 KiB" in home("snapshot", "show", f"{name}@two")
