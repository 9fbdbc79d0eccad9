"""``nox`` runs the quick tests on the oldest and the newest versions that setup.cfg admits, and on ESPnet's s3prl.

``nox -s oldest`` runs one of them, ``nox -s newest -- tests/test_upstream.py`` other tests. An environment takes 6 GB
and three minutes to make. What they said is in docs/versions.md.
"""

from __future__ import annotations

import configparser

import nox

nox.options.sessions = ["oldest", "newest", "espnet"]
nox.options.reuse_existing_virtualenvs = True

QUICK = [
    f"tests/{name}"
    for name in (
        "audio/test_distortion.py", "config", "network", "s3prl_compat/test_compat.py", "s3prl_plugin/test_data.py",
        "s3prl_plugin/test_plug.py", "student/test_folder.py", "student/test_student.py", "student/test_waveforms.py",
        "teachers/test_fast_teachers.py", "teachers/test_teachers.py", "test_distiller.py", "test_loss_and_targets.py",
        "test_upstream.py", "weights/test_keys.py",
    )
]  # fmt: skip
"""What depends on other packages' behaviour and takes minutes: no long training, no killed processes."""

TESTING = ["pytest>=8", "pytest-timeout", "matplotlib", "hypothesis", "espeakng-loader"]


def required(*replaced: str) -> list[str]:
    """setup.cfg's requirements, with those that ``replaced`` names again as it has them."""
    setup = configparser.ConfigParser()
    setup.read("setup.cfg")
    lines = setup["options"]["install_requires"].splitlines()
    names = {_name(one) for one in replaced}
    return [line for line in lines if line and not line.startswith("#") and _name(line) not in names] + list(replaced)


def _name(requirement: str) -> str:
    for mark in "<>=[ ":
        requirement = requirement.partition(mark)[0]
    return requirement


# Each asks whether today's packages still lack what a patch adds; older ones and the fork have it.
NEEDED_TODAY = "tests/s3prl_compat/test_compat.py::test_each_patch_is_needed_works_and_is_applied_once"


def _run(session: nox.Session, *requirements: str, without: str | None = None) -> None:
    session.install(*requirements, *TESTING)
    session.install("--no-deps", "-e", ".")
    session.run("python", "-m", "pip", "list", "--format=freeze", silent=False)
    left_out = ["--deselect", without] if without else []
    session.run("python", "-m", "pytest", *left_out, *(session.posargs or QUICK), env={"OMP_NUM_THREADS": "1"})


@nox.session(python="3.11")
def oldest(session: nox.Session) -> None:
    """The lower bounds of what the package is built on."""
    _run(
        session,
        *required(
            "torch==2.6.0", "torchaudio==2.6.0", "s3prl==0.4.18", "transformers==5.0.0", "lhotse==1.30.0",
            "lightning==2.6.0",
        ),
        without=NEEDED_TODAY,
    )  # fmt: skip


@nox.session(python="3.13")
def newest(session: nox.Session) -> None:
    """The newest that pip finds within the bounds."""
    _run(session, *required())


@nox.session(python="3.11")
def espnet(session: nox.Session) -> None:
    """ESPnet's fork of s3prl, which brings the same module in a package of another name."""
    _run(session, *(one for one in required() if _name(one) != "s3prl"), "espnet-s3prl", without=NEEDED_TODAY)
