"""Bytes of one client in one round, for the presets, from their configurations alone; see --out.

One line a model: what B only, standard LoRA and full fine-tuning send in each direction at one rank, all linear layers
adapted, the model's own head left as it is where it writes, else an output layer of two classes.
"""

from benchmarks.result_line import machine, make_parser, say
from fedasym.runs.communication import PRESETS, WRITERS
from simulations.cost.computed_bytes import communication_costs

METHODS = ("asymmetric", "lora", "full")


def main() -> None:
    """Write one line for each preset."""
    parser = make_parser(__doc__)
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    for model in PRESETS:
        labels = 0 if model in WRITERS else 2
        costs = communication_costs(model, METHODS, options.rank, "all-linear", "auto", "auto", 10, labels)
        line = {
            "benchmark": "traffic",
            **machine("torch", "transformers"),
            "model": model,
            "rank": options.rank,
            "labels": labels,
            "layers": costs[0].layers,
            "parameters": costs[0].parameters,
            "bytes_each_way": {cost.method: cost.rounds[-1].up for cost in costs},
        }
        say(line, options.out)


if __name__ == "__main__":
    main()
