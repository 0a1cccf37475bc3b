"""Seeds of clones: who a clone is, what its files say, what is refused, and the image that cloud-init is to find."""

from __future__ import annotations

import io
import subprocess
import uuid
from pathlib import Path

import pytest
import yaml

from blockdev.cloudinit.files import (
    TEXT_BYTES_MAX,
    USER_DATA,
    Files,
    Texts,
    check_files,
    check_texts,
    write_files,
)
from blockdev.cloudinit.identity import Identity, fill, hostname_of, identify
from blockdev.cloudinit.seed import Seed, build_seed
from blockdev.errors import AlreadyExists, BlockdevError, InvalidArgument
from blockdev.vmmap.machine import mac_address
from tests.cloudinit.image import read_image

UUID = str(uuid.UUID(int=7))
CLONE = Identity("web-1", 1, UUID, "web-1.example.org", 2)


def test_only_the_known_words_of_a_template_are_replaced() -> None:
    template = "@name@ @hostname@ @number@ @uuid@ @mac1@ @other@ a@b.org ${name} {{ name }} @ @name @mac@ $(id)@number@"
    assert fill(template, CLONE) == (
        f"web-1 web-1.example.org 1 {UUID} {mac_address(UUID, 1)} @other@ a@b.org ${{name}} {{{{ name }}}} @ @name @mac@ $(id)1"
    )


def test_an_interface_that_is_not_there_is_refused_where_their_number_is_known() -> None:
    with pytest.raises(InvalidArgument, match="@mac2@ .* has 2"):
        fill("@mac2@", CLONE)
    unknown = CLONE._replace(interface_count=0)
    assert fill("@mac31@", unknown) == mac_address(UUID, 31)
    with pytest.raises(InvalidArgument, match="at most 32"):
        fill("@mac32@", unknown)


@pytest.mark.parametrize(
    ("name", "hostname"), [("web", "web"), ("Web_1.a", "web-1-a"), ("x__-", "x"), ("9.-_z", "9-z"), ("a" * 63, "a" * 63)]
)
def test_a_name_is_made_a_host_name(name: str, hostname: str) -> None:
    assert hostname_of(name) == hostname


def names(*names: str) -> list[tuple[str, str]]:
    return [(name, str(uuid.UUID(int=number))) for number, name in enumerate(names)]


def test_clones_are_numbered_and_named_by_the_pattern() -> None:
    found = identify(names("c-1", "c-2"), "Web@number@.@name@.example.org", 0)
    assert [clone.hostname for clone in found] == ["Web1.c-1.example.org", "Web2.c-2.example.org"]
    assert [clone.number for clone in found] == [1, 2]
    assert [clone.hostname for clone in identify(names("a_b"), None, 0)] == ["a-b"]


@pytest.mark.parametrize(
    "pattern",
    ["", "-web@number@", "web_@number@", "web@number@.", "a b", "@hostname@", "x" * 64, "@mac0@", ".".join("x" * 63 for _ in range(4))],
)
def test_a_pattern_that_makes_no_host_name_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidArgument):
        identify(names("c-1"), pattern, 1)


@pytest.mark.parametrize("pattern", ["web", "WEB", None])
def test_two_clones_with_one_host_name_are_refused(pattern: str | None) -> None:
    with pytest.raises(AlreadyExists, match=r"c-1 and c_1|c-1 and c\.1"):
        identify(names("c-1", "c.1"), pattern, 0)


def test_without_templates_the_files_say_who_the_clone_is() -> None:
    files = write_files(Texts(), CLONE)
    check_files(files)
    assert yaml.safe_load(files.meta_data) == {"instance-id": UUID, "local-hostname": "web-1.example.org"}
    assert files.user_data == USER_DATA
    network = yaml.safe_load(files.network_config or "")
    assert network["version"] == 2
    macs = [entry["match"]["macaddress"] for entry in network["ethernets"].values()]
    assert macs == [mac_address(UUID, 0), mac_address(UUID, 1)]
    assert all(entry["dhcp4"] and entry["set-name"] == name for name, entry in network["ethernets"].items())
    assert write_files(Texts(), CLONE._replace(interface_count=0)).network_config is None


@pytest.mark.parametrize(
    "text",
    [
        USER_DATA,
        "#cloud-config",
        "#cloud-config\nhostname: x\nruncmd: ['echo ${x} {y}']\n",
        "#!/bin/sh\necho hello\n",
        "## template: jinja\n#cloud-config\nfqdn: {{ v1.local_hostname }}\n{% if x %}\n{% endif %}\n",
        "#include\nhttp://example.org/x\n",
        "#cloud-boothook\n#!/bin/sh\n",
        "#cloud-config-archive\n- type: text/cloud-config\n",
        "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=x\n\n--x--\n",
        "Content-Type: multipart/mixed; boundary=x\nMIME-Version: 1.0\n\n--x--\n",
    ],
)
def test_user_data_that_cloud_init_knows_is_taken(text: str) -> None:
    check_files(Files("", text, None))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "does not know"),
        ("hostname: x\n", "without '#'"),
        ("# cloud-config\n", "does not know"),
        ("#cloud-configuration\n", "does not know"),
        ("#cloud-config\n- a\n", "mapping"),
        ("#cloud-config\njust words\n", "mapping"),
        ("#cloud-config\na: [1\nb: 2\n", "line 3"),
        ("#cloud-config\na: 2026-13-45\n", "no YAML"),
        ("#cloud-config\na: !python/object:os.system x\n", "no YAML"),
        ("#cloud-config\n? [a]\n: b\n", "no YAML"),
        ("#cloud-config\na: " + "[" * 30_000, "no YAML"),
        ("#cloud-config\na: " + "9" * 30_000, "no YAML"),
        ("#cloud-config\n\x01", "no YAML"),
        ("Content-Type: multipart/mixed; boundary=x\n\n", "MIME-Version"),
        ("#!" + "x" * TEXT_BYTES_MAX, "at most"),
    ],
)
def test_user_data_that_cloud_init_would_not_take_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        check_files(Files("", text, None))


@pytest.mark.parametrize(
    "secret",
    ["password: SECRET", "#cloud-config\npassword: *SECRET", "#cloud-config\npassword: !SECRET", "#cloud-config\npassword: !SECRET!x"]
    + [f"#cloud-config\npassword: !!{tag} SECRET" for tag in ("int", "float", "bool", "timestamp", "binary", "omap")],
)
def test_a_refusal_tells_nothing_of_what_may_be_a_secret(secret: str) -> None:
    """It is kept in the history of jobs, which every viewer may read."""
    with pytest.raises(InvalidArgument) as refused:
        check_files(Files("", secret, None))
    assert "SECRET" not in refused.value.message


@pytest.mark.parametrize("text", ["", "version: 3", "ethernets: {}", "[]", "network: 5", "a: [", "network: {version: {}}"])
def test_a_network_configuration_of_no_known_version_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        check_files(Files("", USER_DATA, text))


@pytest.mark.parametrize("text", ["version: 1\nconfig: []", "network:\n  version: 2\n", '{"version": 2}'])
def test_a_network_configuration_of_a_known_version_is_taken(text: str) -> None:
    check_files(Files("", USER_DATA, text))


@pytest.mark.parametrize("text", ["a\0", "\ud800", "x" * (TEXT_BYTES_MAX + 1)])
def test_texts_that_cannot_be_kept_are_refused(text: str) -> None:
    for texts in (Texts(text, None), Texts(None, text)):
        with pytest.raises(BlockdevError):
            check_texts(texts)


def image_of(seed: Seed) -> bytes:
    image = bytearray(seed.size_bytes)

    def write(offset: int, data: bytes) -> None:
        assert offset % 4096 == len(data) % 4096 == 0 and data
        image[offset : offset + len(data)] = data

    seed.write(write)
    return bytes(image)


@pytest.mark.parametrize("network", [None, "version: 2\n", "#" * 40_000 + "\nversion: 2\n"])
def test_an_image_has_the_files_under_both_extensions_and_the_label(network: str | None, tmp_path: Path) -> None:
    files = Files("instance-id: x\n", "#!/bin/sh\n# é\n", network)
    image = image_of(build_seed(files))
    wanted = {"meta-data": files.meta_data, "user-data": files.user_data, "network-config": network}
    for extension in ("rock ridge", "joliet"):
        assert read_image(io.BytesIO(image), extension) == {name: text for name, text in wanted.items() if text is not None}
    path = tmp_path / "seed.iso"
    path.write_bytes(image)
    probed = subprocess.run(["/sbin/blkid", "-p", "-o", "export", path], capture_output=True, text=True, check=True)
    assert {"LABEL=cidata", "TYPE=iso9660"} <= set(probed.stdout.splitlines())


def test_a_small_image_is_small() -> None:
    seed = build_seed(write_files(Texts(), CLONE))
    assert seed.size_bytes <= 72 << 10 and sum(len(data) for _, data in seed.parts) <= 40 << 10
