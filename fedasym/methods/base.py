"""What a federated-LoRA method is: what trains, what travels each way, and what the server makes of the replies.

Matrices go by name: ``<layer>.A`` (r, d_in) and ``<layer>.B`` (d_out, r) of an adapted layer, ``<layer>.shift``
(d_out, d_in) where a method folds updates into W, and the matrices of the output layer, which always travel if they
train. A *letter* is the last part of an adapter's name. All are float32.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Matrices = dict[str, Float32]
Schema = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Frame:
    """What a method may need to know besides matrices: the federation's seed, A's kind, r and s."""

    seed: int
    kind: str
    rank: int
    scale: float


Merge = Callable[[Matrices, Matrices, Sequence[tuple[int, Matrices]]], Matrices]
Fold = Callable[[Matrices, Matrices, Sequence[int], int, Frame], Matrices]


@dataclass(frozen=True)
class Method:
    """One way to federate low-rank adapters.

    Attributes:
        name: as in the setting ``method``.
        label: as in tables and plots.
        factors: which matrices of an adapter move at all, by training or by the server: ``"B"``, ``"A"``, ``"AB"``;
            ``"W"`` for full fine-tuning, which has no adapters.
        kind: kind of the initial A where the settings say ``auto``.
        optimizer: local optimizer where the settings say ``auto``.
        lr: rate of the factors where the settings say 0; tuned, see simulations/README.md.
        head_lr: rate of the output layer where the settings say 0.
        head: head policy where the settings say ``auto``.
        cycle: letters that train in rounds 1, 2, …, then again; empty means ``factors`` in every round.
        private: letters that train but stay with their client; its model is then its own (a *personal* method).
        resent: letters that the server sends from round 2 on; empty means what was sent up the round before.
        redraws: whether later rounds begin with another A, drawn from the seed.
        remembers: whether a client builds on what it was sent before, and so keeps it on its disk.
        merge: makes what is broadcast from (held, mean, replies); None broadcasts the mean.
        fold: makes a party's matrices from (held, the clients' stacked factors, their weights, round, frame). With
            it the server relays every client's factors in place of a mean.
    """

    name: str
    label: str
    factors: str
    kind: str
    optimizer: str
    lr: float
    head_lr: float
    head: str = "output"
    cycle: tuple[str, ...] = ()
    private: str = ""
    resent: str = ""
    redraws: bool = False
    remembers: bool = False
    merge: Merge | None = None
    fold: Fold | None = None

    @property
    def personal(self) -> bool:
        """Whether there is no common model: each client has its own."""
        return bool(self.private)

    @property
    def zero(self) -> str:
        """The letter of the factor that starts at zero."""
        return "A" if self.factors == "A" else "B"

    def trains(self, number: int) -> str:
        """Return the letters that train in a round (from 1)."""
        return self.cycle[(number - 1) % len(self.cycle)] if self.cycle else self.factors

    def up(self, number: int) -> str:
        """Return the letters that a client sends in a round."""
        return "".join(letter for letter in self.trains(number) if letter not in self.private)

    def down(self, number: int) -> str:
        """Return the letters that open a round where no stack does: in round 1 what will come back."""
        return self.up(1) if number == 1 else self.resent or self.up(number - 1)

    def common(self, names: Iterable[str]) -> set[str]:
        """Return the names that all parties hold alike."""
        return {name for name in names if letter_of(name) not in set(self.private)}

    def stack(self, mean: Matrices, replies: Sequence[tuple[int, Matrices]]) -> Matrices:
        """Return every client's factors, numbered in the order of the clients, and the mean of the rest."""
        stacked = {f"{i:04d}/{n}": m for i, (_, reply) in enumerate(replies) for n, m in reply.items() if letter_of(n)}
        return stacked | {name: matrix for name, matrix in mean.items() if not letter_of(name)}

    def receive(self, held: Matrices, sent: Matrices, weights: Sequence[int], number: int, frame: Frame) -> Matrices:
        """Return a party's matrices at the start of a round: what it held, moved by what was sent.

        Server and clients call this alike, so they hold the same bits.

        Args:
            held: its matrices at the start of the round before (the initial ones in round 1).
            sent: what opens this round.
            weights: n_k of a stack's clients, in its order; empty if there is no stack.
            number: this round.
            frame: seed, kind, r, s.
        """
        if self.fold and weights:
            return self.fold(held, sent, weights, number, frame)
        return {**held, **sent}

    def sent_schema(self, schema: Schema, number: int, stacked: int) -> Schema:
        """Return names and shapes of what opens a round; ``stacked`` is the number of clients in the stack."""
        if not stacked:
            return select(schema, self.down(number))
        copies = [(f"{i:04d}/{name}", shape) for i in range(stacked) for name, shape in schema if letter_of(name)]
        return tuple(sorted([*copies, *((name, shape) for name, shape in schema if not letter_of(name))]))

    def held_schema(self, schema: Schema) -> Schema:
        """Return names and shapes of all a party holds that is common: ``shift`` too where the method folds."""
        common = self.common(name for name, _ in schema)
        held = [(name, shape) for name, shape in schema if name in common]
        if self.fold:
            held += shift_schema(schema)
        return tuple(sorted(held))


def letter_of(name: str) -> str:
    """Return ``A`` or ``B`` of an adapter's matrix, "" of any other.

    >>> letter_of("encoder.layer.0.query.B"), letter_of("output.weight")
    ('B', '')
    """
    last = name.rpartition(".")[2]
    return last if last in ("A", "B") else ""


def select(schema: Schema, letters: str) -> Schema:
    """Return the part of a schema that has these letters or none."""
    return tuple((name, shape) for name, shape in schema if letter_of(name) in {*letters, ""})


def pick(matrices: Mapping[str, Float32], schema: Schema) -> Matrices:
    """Return the matrices that a schema names."""
    return {name: matrices[name] for name, _ in schema}


def values(schema: Schema) -> int:
    """Return the number of float32 values that a schema's matrices hold."""
    return sum(math.prod(shape) for _, shape in schema)


def layers_of(names: Iterable[str]) -> list[str]:
    """Return the adapted layers that these names speak of, sorted."""
    return sorted({name.rpartition(".")[0] for name in names if letter_of(name)})


def shift_schema(schema: Schema) -> list[tuple[str, tuple[int, ...]]]:
    """Return name and shape ``(d_out, d_in)`` of every adapted layer's shift."""
    shapes = dict(schema)
    return [
        (f"{layer}.shift", (shapes[f"{layer}.B"][0], shapes[f"{layer}.A"][1]))
        for layer in layers_of(shapes)
        if f"{layer}.A" in shapes and f"{layer}.B" in shapes
    ]


def share(weights: Sequence[int]) -> list[float]:
    """Return w_k = n_k / Σ n_k."""
    total = sum(weights)
    return [weight / total for weight in weights]


def stacked(layer: str, replies: Sequence[Mapping[str, Float32]], weights: Sequence[int]) -> tuple[Float64, Float64]:
    """Return ``[w_1 B_1 … w_K B_K]`` and ``[A_1; …; A_K]`` in float64; their product is ``Σ w_k B_k A_k``."""
    B = [w * reply[f"{layer}.B"].astype(np.float64) for w, reply in zip(share(weights), replies, strict=True)]
    return np.concatenate(B, axis=1), np.concatenate([reply[f"{layer}.A"].astype(np.float64) for reply in replies])


def unstack(sent: Matrices, count: int) -> list[Matrices]:
    """Return each client's factors from a stack."""
    replies: list[Matrices] = [{} for _ in range(count)]
    for name, matrix in sent.items():
        place, slash, own = name.partition("/")
        if slash and letter_of(name):
            replies[int(place)][own] = matrix
    return replies
