"""No code of an app bundle but the pinned one runs at a site."""

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from kits import ENVIRONMENT, ROOT, running
from world import tiny_settings

from clients.deploy.bundle_guard import BundleRefused, checked
from clients.deploy.site_processes import BARRED
from fedasym.ops.processes import tail
from fedasym.runs.record import read_rounds


def test_a_bundle_is_installed_only_with_the_pinned_digest() -> None:
    installed: list[bytes] = []
    bundle = b"an app bundle"
    digest = sha256(bundle).hexdigest()
    checked(lambda raw, **_: installed.append(raw), digest)(bundle, skip_prompt=True)
    assert installed == [bundle]
    other = sha256(b"another").hexdigest()
    with pytest.raises(BundleRefused, match=f"SHA-256 {other}, and this site is pinned to {digest}"):
        checked(lambda raw, **_: installed.append(raw), digest)(b"another")
    assert installed == [bundle]


def test_the_guard_runs_nothing_without_a_whole_digest() -> None:
    guard = [sys.executable, "-P", str(ROOT / "clients/deploy/bundle_guard.py")]
    for arguments in ([], ["abc"]):
        done = subprocess.run([*guard, *arguments], capture_output=True, text=True, check=False, env=ENVIRONMENT)
        assert done.returncode == 1 and "is not 64 hexadecimal digits; nothing runs" in done.stderr


def test_the_guard_runs_nothing_if_flower_has_lost_the_place_of_the_check() -> None:
    code = (
        "import sys; from flwr.supernode.runtime import run_clientapp as m; del m.install_from_fab\n"
        "from clients.deploy.bundle_guard import guarded; guarded('a' * 64)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "so nothing runs; use flwr 1.41 or 1.42, or" in done.stderr


@pytest.mark.slow
@pytest.mark.deployed
def test_a_federation_runs_through_a_site_with_the_pinned_bundle_and_no_other(site: Path) -> None:
    from simulations.engines.superlink import FlowerError, run_app, superlink

    def settings(out: str, seconds: float):
        own = {"sites": "north", "labels": "bad,good", "num_clients": 1, "split": "dirichlet:0.5", "num_rounds": 3}
        return tiny_settings(site, out=str(site / out), round_timeout=seconds, **own)

    with superlink(site / "flower.log") as link:
        reach = ("--insecure", "--superlink", f"127.0.0.1:{link.port}")
        with running(site, *reach, "--pin-bundle", "0" * 64), pytest.raises(FlowerError) as raised:
            run_app(link, settings("refused", 60.0))
        assert f"pinned to {'0' * 64}" in str(raised.value)
        came = str(raised.value).split("the app bundle has the SHA-256 ")[1][:64]
        state = site / "kit/state"
        assert not list((state / "flower").rglob("clients")), "nothing of the bundle was installed"
        assert all((state / "bin" / name).exists() for name in BARRED)
        with running(site, *reach, "--pin-bundle", came):
            run_app(link, settings("run", 120.0))
    rounds = read_rounds(site / "run")
    print("\nseconds a round:", *(round(row["seconds"], 1) for row in rounds))
    assert len(rounds) == 3, tail(site / "kit/state/supernode.log")
