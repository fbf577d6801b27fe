"""A labelling job: a fifth of the rows are repeats and all share an instruction. Neither is computed twice."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from data.checkpoint import Checkpoint
from data.dataset import Dataset
from data.plan import plan_windows
from data.prompts import Prompter
from data.run_folder import RunFolder
from data.settings import InputSettings, JobSettings
from data.sharding import PlanOptions
from data.shards import read_prompts
from engine.generation import Generator
from engine.model import load_model
from engine.request import Request, run
from engine.settings import EngineSettings, SamplingSettings
from engine.workloads import Workload

MODEL = Path(__file__).parent.parent.parent / "data" / "models" / "messages-4m"
INSTRUCTION = 512


def test_repeats_and_the_instruction_are_computed_once(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(str(MODEL), None, False)
    rows = Workload.parse("label:160").rows(checkpoint.vocab_size)
    prompts = [list(row.prompt) for row in rows]
    distinct = {tuple(prompt) for prompt in prompts}
    assert len(distinct) == len(rows) - len(rows) // 5
    pq.write_table(pa.table({"ids": pa.array(prompts, pa.list_(pa.int32()))}), tmp_path / "rows.parquet")
    dataset = Dataset.open(InputSettings(path=str(tmp_path / "rows.parquet")))
    dataset.fingerprint()
    prompter = Prompter(JobSettings(prompt_ids="ids"), "error", checkpoint, max_tokens=1)
    folder = RunFolder.create(tmp_path / "run", {"a": 1})
    options = PlanOptions(kind="generate", max_tokens=1, fold=True)
    (window,) = plan_windows(folder, dataset, prompter, "run", options)

    assert window.folded == len(rows) // 5
    assert sum(shard.sequences for shard in window.shards) == len(distinct)
    for shard in window.shards:
        assert shard.shared_tokens == INSTRUCTION * (shard.sequences - 1)

    engine = Generator(
        load_model(MODEL, dtype=torch.float32, device=torch.device("cpu")),
        SamplingSettings(max_tokens=1),
        EngineSettings(),
        stop_ids=(),
        token_bytes=(),
        context_length=checkpoint.context_length,
    )
    for shard in window.shards[:2]:
        planned = read_prompts(folder, shard.id)
        before = engine.statistics()
        done = list(run(engine, [Request(number, ids) for number, ids in enumerate(planned.ids)]))
        assert len(done) == shard.sequences
        after = engine.statistics()
        assert after["shared_tokens"] - before["shared_tokens"] == shard.shared_tokens
        assert after["computed_tokens"] - before["computed_tokens"] == shard.input_tokens - shard.shared_tokens
