"""Codes and invitations, and homes that come to know each other by them; who stands in between, guesses or comes late gets nothing."""

from __future__ import annotations

import base64
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockdev.errors import AlreadyExists, InvalidArgument, NotAllowed, Unavailable
from blockdev.home import Home
from blockdev.replicate import control, pairing, transport
from blockdev.replicate.frames import LENGTH_BYTES, Frame, Message
from blockdev.replicate.halt import Halt, Rejected
from blockdev.replicate.identity import KeyPair
from blockdev.replicate.keys import fingerprint
from blockdev.replicate.messages import Kind
from blockdev.replicate.negotiation import own_hello
from blockdev.replicate.pairing import Admission, Code, Invitations, Invited, decode_code, encode_code
from tests.replicate.sides import SECONDS_MAX, Pusher, Side

INVITED = Invited("site-a", ["web-*"], 1 << 40)
SECRET = bytes(range(16))
FINGERPRINT = "SHA256:" + "A" * 42 + "E"
KEY, OTHER_KEY = (
    "ssh-ed25519 " + base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0 " + bytes([number]) * 32).decode() for number in (1, 2)
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def strangers(tmp_path: Path) -> Iterator[tuple[Side, Side]]:
    """A home that wants to send, and one that listens; they do not know each other."""
    one, other = Side(tmp_path / "a", False), Side(tmp_path / "b", True)
    yield one, other
    one.transport.stop(SECONDS_MAX)
    other.transport.stop(SECONDS_MAX)


# codes


def test_code_is_what_the_document_says() -> None:
    assert encode_code(Code(FINGERPRINT, SECRET)) == (
        "AEAAAAAA-AAAAAAAA-AAAAAAAA-AAAAAAAA-AAAAAAAA-AAAAAAAA-AAAACAAB-AIBQIBIG-A4EASCQL-BQGQ4DZR"
    )


def test_code_comes_back_whatever_case_and_spaces_it_has() -> None:
    code = Code(FINGERPRINT, SECRET)
    text = encode_code(code)
    for one in (text, text.lower(), text.replace("-", ""), f"  {text.replace('-', ' ')}\n"):
        assert decode_code(one) == code


@pytest.mark.parametrize("place", range(0, 89, 11))
def test_code_with_another_letter_is_refused(place: int) -> None:
    text = encode_code(Code(FINGERPRINT, SECRET))
    wrong = text[:place] + ("B" if text[place] != "B" else "C") + text[place + 1 :]
    with pytest.raises(InvalidArgument):
        decode_code(wrong)


@pytest.mark.parametrize("text", ["", "A", "-", "A" * 79, "A" * 81, "A" * 100_000, "ä" * 80, "1" * 80])
def test_text_that_is_no_code_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="copy all of"):
        decode_code(text)


# invitations


def test_invitation_is_good_once() -> None:
    invitations = Invitations(Clock())
    secret = decode_code(invitations.invite(INVITED, FINGERPRINT, 600)).secret
    ticket = invitations.take(secret)
    assert ticket is not None
    assert invitations.take(secret) is None, "two had it at once"
    admitted: list[Invited] = []
    ticket.use(admitted.append)
    assert admitted == [INVITED]
    ticket.give_back()
    assert invitations.take(secret) is None and not invitations.is_any_open


def test_connection_that_paired_cannot_pair_again_when_its_peer_was_removed() -> None:
    invitations = Invitations(Clock())
    ticket = invitations.take(decode_code(invitations.invite(INVITED, FINGERPRINT, 600)).secret)
    assert ticket is not None
    admitted: list[str] = []
    for key in (KEY, OTHER_KEY):
        channel = Admission(ticket, lambda _invited, key: admitted.append(key))
        channel.handle(control.encode_hello(own_hello())[LENGTH_BYTES:])
        [answer] = channel.handle(control.encode_request(pairing.REQUEST, pairing.pair_arguments(key))[LENGTH_BYTES:])
        assert Kind(answer[LENGTH_BYTES]) is (Kind.ANSWER if key == KEY else Kind.REFUSE)
    assert admitted == [KEY]


def test_invitation_whose_connection_is_lost_while_it_is_being_used_is_used() -> None:
    invitations = Invitations(Clock())
    secret = decode_code(invitations.invite(INVITED, FINGERPRINT, 600)).secret
    ticket = invitations.take(secret)
    assert ticket is not None
    ticket.use(lambda _invited: ticket.give_back())
    assert invitations.take(secret) is None


def test_invitation_that_was_taken_and_not_used_is_good_again() -> None:
    invitations = Invitations(Clock())
    secret = decode_code(invitations.invite(INVITED, FINGERPRINT, 600)).secret
    for _ in range(3):
        ticket = invitations.take(secret)
        assert ticket is not None
        ticket.give_back()


def test_invitation_expires() -> None:
    clock = Clock()
    invitations = Invitations(clock)
    secret = decode_code(invitations.invite(INVITED, FINGERPRINT, 600)).secret
    clock.now += 599
    assert invitations.is_any_open
    clock.now += 1
    assert not invitations.is_any_open and invitations.take(secret) is None


def test_invitation_given_back_after_its_time_is_not_good_again() -> None:
    clock = Clock()
    invitations = Invitations(clock)
    secret = decode_code(invitations.invite(INVITED, FINGERPRINT, 600)).secret
    ticket = invitations.take(secret)
    assert ticket is not None
    clock.now += 601
    ticket.give_back()
    assert invitations.take(secret) is None


def test_fifth_wrong_try_ends_every_invitation() -> None:
    invitations = Invitations(Clock())
    secrets = [
        decode_code(invitations.invite(INVITED._replace(name=name), FINGERPRINT, 600)).secret for name in ("a", "b")
    ]
    for _ in range(4):
        assert invitations.take(os.urandom(16)) is None
    ticket = invitations.take(secrets[0])
    assert ticket is not None
    assert invitations.take(b"") is None
    assert invitations.take(secrets[1]) is None and not invitations.is_any_open


def test_invitation_taken_while_the_others_end_by_wrong_tries_is_not_opened_again() -> None:
    invitations = Invitations(Clock())
    secret = decode_code(invitations.invite(INVITED, FINGERPRINT, 600)).secret
    ticket = invitations.take(secret)
    assert ticket is not None
    for _ in range(5):
        invitations.take(b"wrong")
    ticket.give_back()
    assert invitations.take(secret) is None


def test_second_invitation_to_a_name_replaces_the_first() -> None:
    invitations = Invitations(Clock())
    first, second = (decode_code(invitations.invite(INVITED, FINGERPRINT, 600)).secret for _ in range(2))
    assert invitations.take(first) is None
    assert invitations.take(second) is not None


def test_invitations_are_bounded() -> None:
    invitations = Invitations(Clock())
    for number in range(pairing.INVITATIONS_MAX):
        invitations.invite(INVITED._replace(name=f"n{number}"), FINGERPRINT, 600)
    with pytest.raises(NotAllowed):
        invitations.invite(INVITED, FINGERPRINT, 600)


# over SSH


def test_both_ends_know_each_other_by_a_code(strangers: tuple[Side, Side]) -> None:
    one, other = strangers
    code, _until = other.transport.invite(INVITED, 600)
    assert one.transport.pair("127.0.0.1", other.port, code) == other.key
    assert other.doors.peers[one.key].name == "site-a"
    pusher = Pusher(1, 1)
    one.transport.run(one.path_to(other), pusher, Halt())
    assert pusher.is_done
    with pytest.raises(NotAllowed, match="used already"):
        one.transport.pair("127.0.0.1", other.port, code)


def test_wrong_secrets_end_the_invitation_over_the_wire_too(strangers: tuple[Side, Side]) -> None:
    one, other = strangers
    code, _until = other.transport.invite(INVITED, 600)
    wrong = encode_code(Code(decode_code(code).fingerprint, SECRET))
    for _ in range(pairing.TRIES_MAX):
        with pytest.raises(NotAllowed):
            one.transport.pair("127.0.0.1", other.port, wrong)
    with pytest.raises(NotAllowed):
        one.transport.pair("127.0.0.1", other.port, code)
    assert not other.doors.peers


def test_home_in_between_is_never_given_the_secret(
    strangers: tuple[Side, Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = strangers
    code, _until = other.transport.invite(INVITED, 600)
    between = Side(tmp_path / "c", True)
    tries: list[bytes] = []
    between.transport.invite(INVITED, 600)  # it takes passwords
    monkeypatch.setattr(between.transport._invitations, "take", tries.append)
    try:
        with pytest.raises(Rejected, match="is not the home that it should be"):
            one.transport.pair("127.0.0.1", between.port, code)
    finally:
        between.transport.stop(SECONDS_MAX)
    assert not tries and not between.doors.peers
    assert one.transport.pair("127.0.0.1", other.port, code) == other.key, "the invitation was lost"


def test_refused_admission_is_told_and_leaves_the_invitation(
    strangers: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = strangers
    code, _until = other.transport.invite(INVITED, 600)

    def refuse(invited: Invited, key: str) -> None:
        raise AlreadyExists("there is another one of that name")

    with monkeypatch.context() as patched:
        patched.setattr(other.doors, "admit", refuse)
        with pytest.raises(AlreadyExists, match="another one of that name"):
            one.transport.pair("127.0.0.1", other.port, code)
    assert one.transport.pair("127.0.0.1", other.port, code) == other.key


def test_home_that_does_not_listen_invites_nobody_and_own_codes_are_refused(strangers: tuple[Side, Side]) -> None:
    one, other = strangers
    with pytest.raises(InvalidArgument, match="--replicate"):
        one.transport.invite(INVITED, 600)
    code, _until = other.transport.invite(INVITED, 600)
    with pytest.raises(InvalidArgument, match="by this home"):
        other.transport.pair("127.0.0.1", other.port, code)


def test_without_an_invitation_no_password_is_asked_for(strangers: tuple[Side, Side]) -> None:
    _one, other = strangers
    said = ssh(other, "-o", "PreferredAuthentications=password", "-o", "NumberOfPasswordPrompts=1", user="pair")
    assert said.returncode == 255 and "Permission denied (" in said.stderr
    assert "password" not in said.stderr.split("Permission denied (")[1]


# what others than blockdev get


def ssh(side: Side, *arguments: str, user: str = "blockdev", key: Path | None = None) -> subprocess.CompletedProcess[str]:
    """OpenSSH's client, which asks nobody anything."""
    identity = ["-i", str(key), "-o", "IdentitiesOnly=yes"] if key is not None else []
    return subprocess.run(
        ["ssh", "-F", "none", "-p", str(side.port), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=INFO", *identity, "-T", *arguments, f"{user}@127.0.0.1"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS_MAX,
    )  # fmt: skip


def test_openssh_with_a_peers_key_gets_no_shell_command_sftp_or_forwarding(strangers: tuple[Side, Side]) -> None:
    one, other = strangers
    other.doors.add(one.key)
    key = one.home.keys / "identity"
    shell = ssh(other, key=key)
    assert shell.returncode != 0 and "shell request failed" in shell.stderr
    for command in (["id"], ["-s", "sftp"], ["-s", "netconf"]):
        options = [one for one in command if one.startswith("-")]
        words = [one for one in command if not one.startswith("-")]
        said = subprocess.run(
            ["ssh", "-F", "none", "-p", str(other.port), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-i", str(key), "-o", "IdentitiesOnly=yes", *options, "blockdev@127.0.0.1", *words],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS_MAX,
        )  # fmt: skip
        assert said.returncode != 0 and "request failed" in said.stderr and not said.stdout, said
    there = ssh(other, "-W", f"127.0.0.1:{other.port}", key=key)
    assert there.returncode != 0 and "open failed" in there.stderr and not there.stdout
    back = ssh(other, "-N", "-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1", key=key)
    assert back.returncode != 0 and "remote port forwarding failed" in back.stderr
    assert not other.doors.machines


def test_openssh_without_a_known_key_does_not_get_in(strangers: tuple[Side, Side]) -> None:
    one, other = strangers
    one.transport.own()
    for user in ("blockdev", "root", "pair"):
        said = ssh(other, user=user, key=one.home.keys / "identity")
        assert said.returncode == 255 and "Permission denied" in said.stderr


def test_openssh_that_knows_only_other_algorithms_is_refused(strangers: tuple[Side, Side]) -> None:
    _one, other = strangers
    assert "no matching cipher" in ssh(other, "-c", "aes128-ctr").stderr
    assert "no matching key exchange" in ssh(other, "-o", "KexAlgorithms=diffie-hellman-group14-sha256").stderr


# the key


def test_key_is_made_once_for_the_owner_alone(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    made = KeyPair.load(home)
    file = home.keys / "identity"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.name for one in home.keys.iterdir()] == ["identity"]
    assert KeyPair.load(home).key == made.key
    assert made.fingerprint == fingerprint(made.key)
    shown = subprocess.run(["ssh-keygen", "-lf", str(file)], capture_output=True, text=True, check=True).stdout
    assert made.fingerprint in shown and "ED25519" in shown


def test_key_that_others_can_read_or_that_is_none_is_refused(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    KeyPair.load(home)
    file = home.keys / "identity"
    file.chmod(0o640)
    with pytest.raises(InvalidArgument, match="chmod 600"):
        KeyPair.load(home)
    file.chmod(0o600)
    file.write_text("no key\n")
    with pytest.raises(InvalidArgument, match="is no ssh-ed25519 key"):
        KeyPair.load(home)
    file.unlink()
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(file)], check=True)
    with pytest.raises(InvalidArgument, match="is no ssh-ed25519 key"):
        KeyPair.load(home)


def test_settings_and_keys_of_a_user_are_not_looked_at(
    strangers: tuple[Side, Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = strangers
    other.doors.add(one.key)
    directory = tmp_path / "user" / ".ssh"
    directory.mkdir(parents=True)
    (directory / "config").write_text("Host *\n  ProxyCommand false\n  Port 1\n  Ciphers none\n")
    (directory / "known_hosts").write_text("* ssh-ed25519 AAAA\n")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "no-agent"))
    pusher = Pusher(1, 1)
    one.transport.run(one.path_to(other), pusher, Halt())
    assert pusher.is_done


def test_home_that_never_answers_a_pairing_is_given_up(
    strangers: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = strangers
    monkeypatch.setattr(transport, "PAIR_SECONDS_MAX", 0.3)
    gate = threading.Event()
    monkeypatch.setattr(Admission, "handle", lambda _self, _message: [b"" for _ in range(gate.wait(SECONDS_MAX) - 1)])
    code, _ = other.transport.invite(INVITED, 600)
    try:
        with pytest.raises(Unavailable, match="did not answer within"):
            one.transport.pair("127.0.0.1", other.port, code)
    finally:
        gate.set()


def test_pairing_that_is_cut_before_its_answer_says_that_the_other_end_may_know_this_home(
    strangers: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = strangers
    handle = Admission.handle

    def handle_and_cut(self: Admission, message: Message) -> list[Frame]:
        answers = handle(self, message)
        if not self.is_closed:
            return answers
        server = other.transport._server
        assert server is not None
        for guest in server._guests:
            other.transport._loop.asyncio.call_soon_threadsafe(guest.abort)
        return []

    monkeypatch.setattr(Admission, "handle", handle_and_cut)
    code, _ = other.transport.invite(INVITED, 600)
    with pytest.raises(Unavailable, match="may know this home already"):
        one.transport.pair("127.0.0.1", other.port, code)
    assert one.key in other.doors.peers
