"""Datasets and run folders on disk: readers, prompts, plan, ledger, publication. No torch, no Prefect."""
