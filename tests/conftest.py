import gzip
import ipaddress
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import firth

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
DEMO_DATA = Path(firth.__file__).parent / "demo_data"

settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],  # measures the machine, not the code
)
settings.load_profile("default")


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Refuses every connection to another machine, and every question for its address.

    Of this process: those that tests start, and libraries beneath Python's sockets, are not seen.
    """
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, at in (
            (socket.socket, "connect", 1),
            (socket.socket, "connect_ex", 1),
            (socket, "getaddrinfo", 0),
        ):
            patch.setattr(owner, name, _near(getattr(owner, name), at))
        yield


def _near(call: Callable[..., Any], at: int) -> Callable[..., Any]:
    """`call`, if its argument number `at` is a place on this machine."""

    def checked(*arguments: Any, **named: Any) -> Any:
        place = arguments[at]
        host = place[0] if isinstance(place, tuple) else place
        # A bare name is a file where a socket connects, and a machine where an address is asked.
        is_file = at == 1 and not isinstance(place, tuple)
        if not (is_file or host in (None, "", "localhost") or _is_loopback(host)):
            pytest.fail(f"the network is touched: {call.__name__} of {host!r}")
        return call(*arguments, **named)

    return checked


def _is_loopback(host: str | bytes) -> bool:
    try:
        return ipaddress.ip_address(host if isinstance(host, str) else host.decode()).is_loopback
    except ValueError:
        return False


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For what must come out the same: sums hang on how many threads share them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of published corpora that lies beside a checkout, on some machines."""
    if not SHARED.is_dir():
        pytest.skip("the folder shared/ of published corpora is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def papers() -> list[str]:
    """200 different short documents: sections of computational-linguistics papers."""
    with gzip.open(DEMO_DATA / "papers.txt.gz", "rt", encoding="utf-8") as file:
        lines = (line.strip() for line in file)
        short = dict.fromkeys(line for line in lines if 300 <= len(line) <= 1500)
    return list(short)[:200]


@pytest.fixture(scope="session")
def two_threads() -> None:
    """Sums in the same order on every machine; torch is imported only where a test asks for it."""
    import torch

    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, papers: list[str]) -> Path:
    """The run directory of a tiny BERT, pre-trained on papers for a few seconds; do not change it.

    Its window (96 tokens) is longer than the sequences it was trained on (64).
    """
    chosen = firth.recipe("bert", size="tiny", vocab_size=1000)
    training = replace(
        chosen.training,
        steps=100,
        batch_tokens=1024,
        optimizer=replace(chosen.training.optimizer, lr=1e-3),
    )
    chosen = replace(
        chosen,
        model=replace(chosen.model, max_length=96),
        data=replace(chosen.data, max_length=64, valid_tokens=4096),
        training=training,
    )
    run = tmp_path_factory.mktemp("pretrained") / "tiny"
    train, valid = (firth.Corpus.from_texts(part) for part in (papers[:180], papers[180:]))
    firth.pretrain(chosen, train, run, valid=valid)
    return run
