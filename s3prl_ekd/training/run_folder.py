"""The folder of a run: one process at a time writes there, and a start that fails leaves nothing there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from s3prl_ekd.audio.bad_recordings import BAD_RECORDINGS
from s3prl_ekd.config.pruning import StageConfig
from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import only_writer


@contextlib.contextmanager
def run_folder(folder: Path, *, trained: Callable[[], bool]) -> Iterator[None]:
    """Make ``folder``, and keep other processes out of it while the block runs.

    If the block fails before anything is ``trained``, what it has written there is removed.

    Raises:
        UserError: another process is at work there, or the folder cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with contextlib.ExitStack() as stack:
        stack.callback(_remove, made)
        try:
            stack.enter_context(only_writer(folder))
        except OSError as error:
            raise UserError(f"output: {folder} cannot be written ({error.strerror or error})") from error
        before = set(folder.rglob("*"))
        try:
            yield
        except BaseException:
            if not trained():
                _remove(sorted(set(folder.rglob("*")) - before, reverse=True))  # contents before their folder
            raise


def stage_folders(run: Path) -> list[Path]:
    """Where the parts of a run have their checkpoints and logs, in their order: the folders of the stages that its
    recipe names; a run without stages has its own."""
    stages: tuple[StageConfig, ...] = ()
    with contextlib.suppress(UserError):  # there is no recipe, or one of another version
        stages = RunConfig.from_yaml(run / "recipe.yaml").stages
    return [run / stage.name for stage in stages] or [run]


def _remove(paths: list[Path]) -> None:
    """Remove files, except the list of bad recordings, and empty folders."""
    for path in paths:
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif path.name != BAD_RECORDINGS:  # it says why the start failed
                path.unlink()
