"""The examples over gRPC, in every language whose toolchain is here."""

from pathlib import Path

import pytest

from tests.gateway.conftest import Fleet
from tests.polyglot.clients import assert_asks_again_with_its_seed, assert_is_told_why, assert_makes_pictures
from tests.polyglot.languages import LANGUAGES, Program


@pytest.fixture(scope="module", params=LANGUAGES)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Program:
    return LANGUAGES[request.param](tmp_path_factory.mktemp(request.param))


def test_it_makes_pictures(program: Program, fleet: Fleet, tmp_path: Path) -> None:
    assert_makes_pictures(program, fleet.up, tmp_path)


def test_it_is_told_why(program: Program, fleet: Fleet) -> None:
    assert_is_told_why(program, fleet.up)


async def test_it_asks_again_with_its_seed(program: Program, tmp_path: Path) -> None:
    await assert_asks_again_with_its_seed(program, tmp_path)
