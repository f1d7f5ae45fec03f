"""Addresses of replicas: lists, sockets, and names that stand for one host or several."""

import pytest

from triptych_coordinator.fleet.discovery import check_replicas, has_names, look_up, resolve

HOSTS = {
    "one": ["10.0.0.1"],
    "both": ["10.0.0.1", "::1"],
    "three": ["10.0.0.10", "10.0.0.9", "10.0.0.10", "10.0.0.11"],
    "dual": ["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"],
    "six": ["fd00::2", "fd00::1", "10.0.0.1"],
}


async def known(name: str, port: int) -> list[str]:
    if name not in HOSTS:
        raise OSError(f"{name} is not known")
    return HOSTS[name]


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("unix:/run/a.sock", ["unix:/run/a.sock"]),
        ("unix:/a, unix:/b,unix:/a", ["unix:/a", "unix:/b"]),
        ("10.1.1.1:50051,[::1]:50052", ["10.1.1.1:50051", "[::1]:50052"]),
        ("one:50052", ["one:50052"]),
        ("both:50052", ["both:50052"]),
        ("three:50052", ["10.0.0.9:50052", "10.0.0.10:50052", "10.0.0.11:50052"]),
        ("dual:50052", ["10.0.0.1:50052", "10.0.0.2:50052"]),
        ("six:50052", ["[fd00::1]:50052", "[fd00::2]:50052"]),
        ("three:1,unix:/a", ["10.0.0.9:1", "10.0.0.10:1", "10.0.0.11:1", "unix:/a"]),
    ],
)
async def test_every_host_is_a_replica(text: str, addresses: list[str]) -> None:
    assert list(await resolve(check_replicas(text), known)) == addresses


async def test_a_name_that_is_not_known_is_an_error() -> None:
    with pytest.raises(OSError, match="four is not known"):
        await resolve("four:1,unix:/a", known)


def test_only_names_change() -> None:
    assert has_names("unix:/a,denoisers:50052")
    assert not has_names("unix:/a,10.1.1.1:50051,[::1]:50052")


@pytest.mark.parametrize("text", ["", "unix:/a,", "host", "a;b"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither host:port nor unix:/path"):
        check_replicas(text)


async def test_the_systems_resolver_knows_this_machine() -> None:
    assert {"127.0.0.1", "::1"} & set(await look_up("localhost", 50051))
