"""The model under PEFT's LoRA, a node's share of the reviews, and its local steps."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding


def make_model(config: dict[str, Any]) -> Any:
    """Return the classifier with LoRA on query and value."""
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(config["model"], num_labels=2)
    lora = LoraConfig(task_type="SEQ_CLS", r=config["rank"], lora_alpha=16, target_modules=["query", "value"])
    return get_peft_model(base, lora)


def share(config: dict[str, Any], node: int, nodes: int) -> tuple[Any, Any]:
    """Return a node's tokenized share of ``train.jsonl`` and what makes its batches."""
    partitioner = DirichletPartitioner(
        num_partitions=nodes, partition_by="label", alpha=0.5, seed=42, min_partition_size=16
    )
    table = pd.read_json(f"{config['data']}/train.jsonl", orient="records", lines=True)[["text", "label"]]
    partitioner.dataset = Dataset.from_pandas(table, preserve_index=False)
    tokenizer = AutoTokenizer.from_pretrained(config["model"])

    def tokens(rows: Any) -> Any:
        return tokenizer(rows["text"], truncation=True, max_length=64)

    own = partitioner.load_partition(node).map(tokens, batched=True, remove_columns=["text"])
    return own, DataCollatorWithPadding(tokenizer)


def train(model: Any, own: Any, collate: Any, config: dict[str, Any]) -> float:
    """Do the local steps; return the last loss. After the first a file is made, if one is named."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=config["lr"])
    loader = DataLoader(own, batch_size=config["batch-size"], shuffle=True, collate_fn=collate)
    model.train()
    loss, done = torch.tensor(0.0), 0
    while done < config["steps"]:
        for batch in loader:
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if config["first-step"]:
                Path(config["first-step"]).touch()
            if done == config["steps"]:
                break
    return float(loss)
