"""Aggregate many clients' LoRA exactly, although the product of mean B and mean A is not the mean product.

The server needs P = sum_k w_k B_k A_k. Rules run on the products (a pair becomes one tensor,
``PATH.lora_product``); their result becomes a pair again:

* ``svd`` (default): the best approximation of rank r; a client with a smaller rank gets its first directions.
* ``into_base``: like ``svd``, but what the rank cannot hold goes into the frozen weight (FedEx-LoRA, arXiv
  2410.09432): exact, at the price of a dense tensor per round and layer.
* ``stack``: the clients' matrices are stacked (FLoRA, arXiv 2409.05976): exact, with the sum of the ranks. The
  clients add the result to the frozen weight and start a new pair.
* ``naive``: A and B are averaged separately; only for comparison, and its error is reported.

The rows of A are orthonormal directions times a constant, and B carries the magnitudes. A direction that the
product does not use yet has A like a fresh adapter's and B = 0, so it still learns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from modalign.federation.rules import Tensors

Aggregation = Literal["svd", "into_base", "stack", "naive"]
A, B = ".lora_A.default.weight", ".lora_B.default.weight"
PRODUCT = ".lora_product"
FRESH = math.sqrt(1 / 3)  # length of a row of A as peft draws it


def pairs_of(names: Sequence[str]) -> list[str]:
    """Return the paths of modules whose A and B are among these tensors."""
    return [name.removesuffix(A) for name in names if name.endswith(A)]


def product(tensors: Tensors, path: str) -> Tensor:
    """Return B A of a module, (out, in), in float64."""
    return tensors[path + B].double() @ tensors[path + A].double()


def as_products(tensors: Tensors) -> Tensors:
    """Return the tensors with every pair replaced by its product."""
    found = {name: t.double() for name, t in tensors.items() if not name.endswith((A, B))}
    return found | {path + PRODUCT: product(tensors, path) for path in pairs_of(list(tensors))}


def factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the best A (rank, in) and B (out, rank) of a matrix (Eckart and Young 1936)."""
    left, sizes, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    found = min(rank, len(sizes))
    first = matrix.new_zeros(rank, matrix.shape[1], dtype=torch.float64)
    second = matrix.new_zeros(matrix.shape[0], rank, dtype=torch.float64)
    # The sign is arbitrary; this fixes it.
    signs = torch.sign(right.gather(1, right.abs().argmax(1, keepdim=True)))
    first[:found] = FRESH * (right * signs)[:found]
    second[:, :found] = (left * sizes * signs.T)[:, :found] / FRESH
    return first, second


def fresh(rows: int, columns: int, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return A and B of a new pair: their product is zero, and A is drawn as in peft."""
    reach = 1 / math.sqrt(columns)
    drawn = (2 * torch.rand(rank, columns, generator=generator) - 1) * reach
    return drawn, torch.zeros(rows, rank)


def cut(tensors: Tensors, rank: int) -> Tensors:
    """Return the tensors with only the first directions of every pair: what a client of this rank gets."""
    shorter = {path + A: tensors[path + A][:rank].contiguous() for path in pairs_of(list(tensors))}
    narrower = {
        path + B: tensors[path + B][:, :rank].contiguous() for path in pairs_of(list(tensors))
    }
    return {**tensors, **shorter, **narrower}


def padded(tensors: Tensors, rank: int) -> Tensors:
    """Return the tensors with zero directions added to every pair; they get no gradient and stay zero."""
    found = dict(tensors)
    for path in pairs_of(list(tensors)):
        a, b = tensors[path + A], tensors[path + B]
        found[path + A] = torch.cat([a, a.new_zeros(rank - len(a), a.shape[1])])
        found[path + B] = torch.cat([b, b.new_zeros(len(b), rank - b.shape[1])], 1)
    return found


def stacked(trained: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
    """Return pairs whose products are exactly the weighted means of the clients' products."""
    found: Tensors = {}
    for path in pairs_of(list(trained[0])):
        found[path + A] = torch.cat([each[path + A] for each in trained])
        scaled = [w * each[path + B] for each, w in zip(trained, weights, strict=True)]
        found[path + B] = torch.cat(scaled, 1)
    return found


def error(found: Tensors, exact: Tensors) -> float:
    """Return the relative error of all products together, by Frobenius' norm; 0 where there is no pair."""
    names = [name for name in exact if name.endswith(PRODUCT)]
    missed = sum(float((found[n] - exact[n]).square().sum()) for n in names)
    whole = sum(float(exact[n].square().sum()) for n in names)
    return math.sqrt(missed / whole) if whole else 0.0
