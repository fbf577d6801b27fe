"""The engine: torch models, memory, batching and sampling behind `add` and `step`. No files of ours, no Prefect."""
