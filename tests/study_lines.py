"""Plausible result lines for the tests of a study: made of formulas and NumPy's generator, no training."""

import numpy as np

METHODS = {
    "asymmetric": ("B only (fedasym)", 1000, 1000, 2e-8, 0.000),
    "lora": ("standard LoRA", 1900, 1900, 0.08, -0.004),
    "ffa": ("FFA-LoRA", 1000, 1000, 2e-8, -0.006),
    "fedex": ("FedEx-LoRA", 1900, 9000, 3e-8, 0.002),
    "flora": ("FLoRA", 1900, 19000, 1e-8, -0.02),
    "flexlora": ("FlexLoRA", 1900, 1900, 0.002, -0.005),
    "rolora": ("RoLoRA", 950, 950, 2e-8, -0.003),
    "fedsvd": ("FedSVD", 1000, 1900, 2e-8, 0.001),
    "a-only": ("A only", 900, 900, 2e-8, -0.03),
    "full": ("full fine-tuning", 90000, 90000, 3e-8, 0.01),
    "fedsa": ("FedSA-LoRA", 900, 900, None, 0.02),
    "central": ("central, all data", 0, 0, None, 0.03),
    "local": ("local only", 0, 0, None, -0.01),
}
PERSONAL = ("fedsa", "local")
TASKS = {
    "cola": ("matthews", 0.52, 2), "mrpc": ("accuracy", 0.84, 2), "sst2": ("accuracy", 0.91, 2),
    "stsb": ("pearson", 0.86, 0),
}  # fmt: skip
SPLITS = {"iid": 0.0, "dirichlet:0.5": 0.01, "severe": 0.05}
CLIENTS, ROUNDS, HEAD = 5, 12, 400  # clients, rounds, bytes


def make_line(method="asymmetric", task="sst2", split="iid", seed=0, **changed):
    """One line; ``changed`` replaces keys of it."""
    label, up, down, mismatch, gain = METHODS[method]
    metric, level, classes = TASKS[task]
    personal = method in PERSONAL
    key = [list(METHODS).index(method), list(TASKS).index(task), list(SPLITS).index(split), seed]
    rng = np.random.default_rng(key)
    common = np.random.default_rng([*key[1:], 99])  # what a seed does to all methods
    end = level + gain - SPLITS[split] * (0.2 if personal else 1 + 5 * (method == "lora")) + common.normal(0, 0.006)
    rounds = np.arange(1, ROUNDS + 1)
    curve = end - 0.3 * np.exp(-rounds / (2.5 + (method == "lora"))) + rng.normal(0, 0.003, ROUNDS)
    curve[-1] = end + rng.normal(0, 0.002)
    values = [round(float(v), 4) if (i + 1) % 2 == 0 or i == ROUNDS - 1 else None for i, v in enumerate(curve)]
    known = [value for value in values if value is not None]
    sends = method not in ("central", "local")
    up_bytes, down_bytes = (float(4 * count + HEAD) if sends else 0.0 for count in (up, down))
    counts = common.integers(5, 120, (CLIENTS, classes or 1)).tolist()
    at_clients = [None if v is None else round(v + 0.03, 4) for v in values] if method == "asymmetric" else []
    loss = 0.2 + 0.5 * np.exp(-rounds / 4) + rng.random(ROUNDS) / 50
    return {
        "task": task, "split": split, "method": method, "label": label, "seed": seed, "model": "org/small-model",
        "rounds": ROUNDS, "metric": metric, "final": known[-1], "best": max(known), "metric_by_round": values,
        "train_loss_by_round": [round(float(v), 4) for v in loss],
        "mismatch": mismatch, "mismatch_by_round": [] if mismatch is None else [mismatch] * ROUNDS,
        "payload_up_per_client_round": up_bytes, "payload_down_per_client_round": down_bytes,
        "payload_total": int(ROUNDS * CLIENTS * (up_bytes + down_bytes)),
        "payload_by_round": [int(CLIENTS * (up_bytes + down_bytes))] * ROUNDS,
        "message_total": int(ROUNDS * CLIENTS * (up_bytes + down_bytes + 261 * sends)),
        "message_up_per_client_round": up_bytes + 150 * sends,
        "message_down_per_client_round": down_bytes + 111 * sends,
        "head_bytes": HEAD if sends else 0, "client_metric_by_round": at_clients or (values if personal else []),
        "personal": personal, "examples_trained": ROUNDS * CLIENTS * 160, "seconds": 30.0 + 10 * key[0] + seed,
        "partition": {
            "sizes": [sum(row) for row in counts], "classes": [f"class {k}" for k in range(classes)],
            "label_counts": counts, "digest": f"{task}{split}{seed}".encode().hex(),
        },
        "settings": {
            "method": method, "task": task, "split": split, "seed": seed, "num-rounds": ROUNDS, "num-clients": CLIENTS,
            "lr": 0.3 if method != "lora" else 0.1, "kind": "kaiming" if method == "lora" else "orthonormal",
            "text-columns": "text" if task in ("cola", "sst2") else "sentence1,sentence2", "out": "",
        },
        "versions": {"fedasym": "0.1.0", "torch": "2.9.0"},
    } | changed  # fmt: skip


def make_lines(seeds=(0, 1, 2), methods=tuple(METHODS), tasks=tuple(TASKS), splits=tuple(SPLITS)):
    """A whole grid; the central reference under the first split alone, as it has none."""
    return [
        make_line(method, task, split, seed)
        for method in methods
        for task in tasks
        for split in splits
        for seed in seeds
        if method != "central" or split == splits[0]
    ]
