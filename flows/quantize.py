"""The quantize flow: make a smaller checkpoint, compare it with the original, and publish it if it is good enough."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from flows.evaluate import evaluate
from tasks.configuration import load_settings
from tasks.quantization import OPENED, taken_or_opened
from tasks.quantization_job import QuantizationJob, prepare
from tasks.quantization_report import Quantization
from tasks.quantization_stages import make_checkpoint, publish_checkpoint
from tasks.settings import Settings, set_explicitly


@flow(name="quantize", persist_result=False)
def quantize(
    config: str = "config.toml",
    settings: Settings = Settings(),  # noqa: B008 - frozen, and Prefect makes the form from it
    fresh: bool = False,
) -> Quantization:
    """Quantize the model at `model.path`, as `[quantize]` says, and publish the checkpoint.

    Args:
        config: path of the configuration file; empty for none.
        settings: settings that go before those of the file; what is left out is taken from there.
        fresh: drop unfinished work, and replace what is at the output once the new checkpoint is done; a retry goes on
            from there.
    """
    job = None if OPENED.get() else _prepare(config, settings, fresh)
    with taken_or_opened(job) as work:
        if not work.finished:
            make_checkpoint(work)
            gate = work.job.settings.quantize.gate
            evaluation = evaluate("", work.job.gate_settings(work.checkpoint)) if gate else None
            publish_checkpoint(work, evaluation)
    assert work.report is not None
    return work.report


def _prepare(config: str, settings: Settings, fresh: bool) -> QuantizationJob:
    loaded = load_settings(Path(config) if config else None, set_explicitly(settings))
    started = flow_run.scheduled_start_time.astimezone()
    return prepare(loaded, fresh=fresh, started=started, flow_run=flow_run.id)
