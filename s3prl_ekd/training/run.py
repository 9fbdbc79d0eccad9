"""Training as a recipe says: the Distiller in Lightning's Trainer, from an empty folder or from where it stopped.

:func:`train` is the whole run. In each process, Lightning then calls :class:`~s3prl_ekd.training.module.DistillModule`
for each batch, and after it the callbacks, which log, save and stop.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import importlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning_utilities.core.rank_zero import rank_zero_only

from s3prl_ekd import SAMPLE_RATE
from s3prl_ekd.audio.bad_recordings import BAD_RECORDINGS
from s3prl_ekd.audio.batch import Batch
from s3prl_ekd.calibration.kept import calibrated
from s3prl_ekd.config.training import Precision, RunConfig, check_resumable
from s3prl_ekd.devices import default_device
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.errors import UserError, one_line
from s3prl_ekd.files import write_yaml
from s3prl_ekd.student.folder import save_student
from s3prl_ekd.target_cache.reading import TargetCache
from s3prl_ekd.targets import Fits
from s3prl_ekd.teachers import load_teachers
from s3prl_ekd.teachers.cached import cached_teachers
from s3prl_ekd.training.batches import DataError
from s3prl_ekd.training.checkpoints import Checkpoints, SyncedCheckpointIO, newest_readable, step_files
from s3prl_ekd.training.module import DistillModule, Inputs, OpenInputs
from s3prl_ekd.training.progress import Progress
from s3prl_ekd.training.pruning import smaller_student
from s3prl_ekd.training.run_folder import run_folder
from s3prl_ekd.training.run_log import RunLog
from s3prl_ekd.training.stages import Stage, checkpoints_of_other_stages, stages_of
from s3prl_ekd.training.stopping import Preempted, StopSignals

logger = logging.getLogger(__name__)

EXIT_PREEMPTED = 75
"""Exit status of a run that SIGTERM or SIGUSR1 stopped after saving (sysexits' EX_TEMPFAIL): start it with --resume."""

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def open_inputs(config: RunConfig, rank: int, world_size: int, fits: Fits | None = None) -> Inputs:
    """What one process trains with: its part of the speech, and the Distiller.

    Args:
        config: the recipe, of a stage.
        rank: number of the process.
        world_size: how many there are.
        fits: units and principal components where teachers run and the recipe has some.

    Raises:
        UserError: something in recipe, data or teachers is wrong; the cache of targets is incomplete or another
            recipe's.
    """
    from s3prl_ekd.cuts.stream import BatchStream, Rank

    cache = TargetCache(config.targets.cache).require(config) if config.targets.cache is not None else None
    stream = BatchStream(
        config.data,
        config.distortion,
        seed=config.seed,
        rank=Rank(rank, world_size),
        targets_cache=cache,
        bad_recordings=Path(config.output, BAD_RECORDINGS),
    )
    dev = stream.dev_loader()
    teachers = load_teachers(config) if cache is None else cached_teachers(config, cache)
    seed_everything(config.seed, verbose=False)  # the student's random weights depend on the seed alone
    return Inputs(stream, dev, Distiller(config.distill, teachers, fits))


def train(config: RunConfig, *, resume: bool = False, open_inputs: OpenInputs = open_inputs) -> int:
    """Train, and export the student at the end.

    Args:
        config: the recipe.
        resume: go on from the newest readable checkpoint of ``config.output``, from the start if there is none.
        open_inputs: opens the data and builds the Distiller, once Lightning has set up its processes.

    Returns:
        0, or :data:`EXIT_PREEMPTED` where a signal stopped the run after a checkpoint.

    Raises:
        UserError: recipe or data are wrong; the folder holds a run already and ``resume`` is False; another process
            is at work there; the resumed recipe differs; memory or disk are full; the loss stays infinite.
        KeyboardInterrupt: from Ctrl-C.
    """
    folder, signals = Path(config.output), StopSignals()
    progress = [Progress(config.trainer.accumulate) for _ in stages_of(config)]
    alone = run_folder(folder, trained=lambda: any(one.trained for one in progress))
    with alone if _is_first_process() else contextlib.nullcontext():
        checkpoint = _any_checkpoint(config)
        if checkpoint is not None and not resume:
            raise UserError(
                f"{checkpoint.parent.parent}: holds a run already ({checkpoint.name}); add --resume to go on with it,"
                " or name another output"
            )
        config, fits = calibrated(config, resume=checkpoint is not None, first=_is_first_process())
        if fits is not None:
            open_inputs = functools.partial(open_inputs, fits=fits)
        stages = stages_of(config)
        first, start = _find_start(config, stages, resume)
        if _is_first_process() and config.stages:
            _write_recipe(folder, config)
        if _is_first_process() and stages[-1].config.pruning is not None:
            logger.warning("pruning: nothing trains the student once it has shrunk; name two stages, not one")
        with signals.listening():
            for stage, its_progress in list(zip(stages, progress, strict=True))[first:]:
                if not _train_stage(stage, start, open_inputs, its_progress, signals):
                    return EXIT_PREEMPTED
                start = None
                if stage is not stages[-1]:
                    _clear(config)
    return 0


def _train_stage(
    stage: Stage, start: Path | None, open_inputs: OpenInputs, progress: Progress, signals: StopSignals
) -> bool:
    """Train a stage to its end, and save its student; False where a signal stopped it after a checkpoint.

    Args:
        stage: a part of the run.
        start: its checkpoint to go on from; None: its beginning.
        open_inputs: see :func:`train`.
        progress: of this stage.
        signals: of the whole run.
    """
    config = stage.config
    if stage.folder != Path(stage.run.output):
        logger.info("stage %s: %d steps", stage.folder.name, config.trainer.max_steps)
    if _is_first_process():
        for leftover in stage.checkpoints.glob(".step-*.part.ckpt"):  # of killed processes
            leftover.unlink(missing_ok=True)
        _write_recipe(stage.folder, stage.resolved())
    module = DistillModule(stage, open_inputs, progress, signals)
    checkpoints = Checkpoints(progress, stage.checkpoints, config)
    callbacks = [signals, RunLog(progress, checkpoints, config.trainer), checkpoints]
    with _errors_explained(config, progress, checkpoints):
        trainer = _trainer(config, start, callbacks)
        try:
            trainer.fit(module, ckpt_path=start, weights_only=True)
        except (Preempted, SIGTERMException) as stop:
            saved = checkpoints.saved
            logger.warning("%s%s; go on with --resume (exit status %d)", stop or "stopped", saved, EXIT_PREEMPTED)
            return False
    if trainer.global_step <= progress.statistics.skipped_ever():
        raise UserError(
            f"{stage.folder}: no step has learnt anything, loss or gradient were not finite in all"
            f" {trainer.global_step}; no student is exported. Look at the recordings; lower optimizer.lr, or use"
            " trainer.precision: bf16"
        )
    if trainer.is_global_zero:
        distiller = module.distiller
        student = smaller_student(distiller.student, distiller.gates) if distiller.gates else distiller.student
        save_student(stage.student, student, distiller.heads, config.distill)
    return True


def _clear(config: RunConfig) -> None:
    """Let go of a stage's loaders, networks and device memory, and close its Weights & Biases run."""
    gc.collect()  # Trainer and module refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if config.trainer.wandb_project is not None and importlib.util.find_spec("wandb") is not None:
        importlib.import_module("wandb").finish()


def _is_first_process() -> bool:
    """Whether this is the first of all processes, as their launcher's environment says."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]  # an attribute that Lightning gives its function


def _any_checkpoint(config: RunConfig) -> Path | None:
    """The newest checkpoint of a run in the recipe's folder, damaged or not; None: there is none."""
    places = [*(stage.checkpoints for stage in reversed(stages_of(config))), *checkpoints_of_other_stages(config)]
    return next((files[-1] for files in map(step_files, places) if files), None)


def _find_start(config: RunConfig, stages: Sequence[Stage], resume: bool) -> tuple[int, Path | None]:
    """Number of the stage to go on with, and the checkpoint to go on from, if any.

    All processes look before one of them changes anything, so that all find the same.

    Raises:
        UserError: the run is one of another recipe.
    """
    if not resume:
        return 0, None
    places = {stage.checkpoints: number for number, stage in enumerate(stages)}
    for place in (*reversed(places), *checkpoints_of_other_stages(config)):
        found = newest_readable(place)
        if found is not None:
            check_resumable(found[1]["recipe"], config)
            stage = stages[places[place]]
            over = stage is not stages[-1] and stage.student.exists()
            logger.info("resuming %s %s", "after" if over else "from", found[0])
            return (places[place] + 1, None) if over else (places[place], found[0])
    logger.info("%s: no checkpoint to resume from, starting anew", stages[0].checkpoints)
    return 0, None


def _write_recipe(folder: Path, recipe: RunConfig) -> None:
    try:
        write_yaml(folder / "recipe.yaml", recipe.to_mapping())
    except OSError as error:
        raise UserError(f"output: {folder} cannot be written ({error.strerror or error})") from error


@contextlib.contextmanager
def _errors_explained(config: RunConfig, progress: Progress, checkpoints: Checkpoints) -> Iterator[None]:
    """Turn errors that end a run into messages that say what the user can do, and which checkpoint there is."""
    try:
        yield
    except DataError as error:
        raise UserError(f"{error}{checkpoints.saved}") from error
    except SystemExit as stop:  # what Lightning makes of a KeyboardInterrupt
        raise KeyboardInterrupt("go on with --resume") from stop
    except torch.OutOfMemoryError as error:
        raise UserError(_out_of_memory(progress.batch, config)) from error
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise UserError(f"{config.output}: {error.strerror}; make room and go on with --resume") from error
        raise


def _trainer(config: RunConfig, start: Path | None, callbacks: list[Callback]) -> Trainer:
    options, folder = config.trainer, Path(config.output)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    plugins: list[Any] = [SyncedCheckpointIO()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # the job script does it, on our exit status
    # Not Trainer(precision="16-mixed"): on a CPU that silently is bf16.
    if options.precision is not Precision.FP32:
        name: Literal["16-mixed", "bf16-mixed"] = "bf16-mixed" if options.precision is Precision.BF16 else "16-mixed"
        plugins.append(MixedPrecision(name, default_device(options.accelerator)))
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*`lr_scheduler.step\\(\\)` before `optimizer.step\\(\\)`.*")  # skipped steps
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")  # Lightning's own
    try:
        trainer = Trainer(
            accelerator=options.accelerator,
            devices=options.devices if options.devices is not None else "auto",
            num_nodes=options.num_nodes,
            strategy=options.strategy,
            plugins=plugins,
            logger=_loggers(config, folder, start),
            callbacks=callbacks,
            max_steps=options.max_steps,
            max_epochs=-1,
            accumulate_grad_batches=options.accumulate,
            val_check_interval=options.dev_every * options.accumulate,
            check_val_every_n_epoch=None,
            limit_val_batches=None if config.data.dev_cuts else 0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        no_gpu = options.accelerator in ("gpu", "cuda") and not torch.cuda.is_available()
        hint = "; torch sees no GPU here: give trainer.accelerator=auto, which takes what there is" if no_gpu else ""
        raise UserError(f"trainer: {one_line(error)}{hint}") from error
    _check_processes(trainer)
    return trainer


def _check_processes(trainer: Trainer) -> None:
    """Check that the launcher has started as many processes as the recipe says; else each might train on its own."""
    launcher = next((kind() for kind in (SLURMEnvironment, TorchElasticEnvironment) if kind.detect()), None)
    wanted = trainer.num_devices * trainer.num_nodes
    if launcher is not None and launcher.world_size() != wanted:
        raise UserError(
            f"trainer: devices x num_nodes is {trainer.num_devices} x {trainer.num_nodes}, but"
            f" {launcher.world_size()} processes were started; start one for each device (srun, torchrun"
            " --nproc-per-node) or correct the recipe"
        )


def _loggers(config: RunConfig, folder: Path, start: Path | None) -> list[Logger]:
    # A resumed run writes its own CSV file (Lightning's logger would delete one that is there); TensorBoard joins them.
    first = int(start.stem.removeprefix("step-")) if start is not None else 0
    logs = folder / "logs"
    loggers: list[Logger] = [CSVLogger(logs, name="csv", version=f"from-step-{first:08d}", flush_logs_every_n_steps=1)]
    said = logger.warning if _is_first_process() else logger.debug
    if any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
        loggers.append(TensorBoardLogger(logs, name="tensorboard", version="", purge_step=first + 1 if first else None))
    else:
        said(
            "no TensorBoard log is written, since neither tensorboard nor tensorboardX is installed; %s/csv has it all",
            logs,
        )
    project = config.trainer.wandb_project
    if project is not None and importlib.util.find_spec("wandb") is None:
        said(
            "trainer.wandb_project: nothing is logged to %r, since wandb is not installed (pip install wandb)", project
        )
    elif project is not None:
        offline = "WANDB_API_KEY" not in os.environ and "WANDB_MODE" not in os.environ
        if offline:
            said("trainer.wandb_project: logged to %s alone; `wandb sync` uploads it, WANDB_API_KEY does at once", logs)
        loggers.append(WandbLogger(project=project, save_dir=logs, offline=offline))
    return loggers


def _out_of_memory(batch: Batch | None, config: RunConfig) -> str:
    seconds = [samples / SAMPLE_RATE for samples in batch.lengths.tolist()] if batch is not None else []
    longest = max(seconds, default=0.0)
    what = f"a batch of {sum(seconds):.1f} s of speech ({len(seconds)} utterances, the longest {longest:.1f} s)"
    accumulate = f"raise trainer.accumulate (now {config.trainer.accumulate})"
    if config.data.global_batch_seconds is None:
        remedy = f"lower data.batch_seconds (now {config.data.batch_seconds:g}) and {accumulate} by the same factor"
    else:
        remedy = f"{accumulate}, which divides data.global_batch_seconds among more batches"
    return f"out of memory with {what}; {remedy}"
