"""A table of weights as a sum of products: what depends on the others times what depends on the own token."""

import torch
from jaxtyping import Float
from torch import Tensor

EXACT = 1e-13
"""A column is a combination of others if what is left of it is below this share of its own length: rounding."""


def factorise(table: Float[Tensor, "S J"]) -> tuple[Float[Tensor, "S B"], Float[Tensor, "B J"]]:
    """α and ψ with table = α ψ, α some of the table's own columns, as few as will do.

    Pivoted Gram-Schmidt, every vector orthogonalised twice; columns are compared in units of their own length, so that
    tokens of small weight are as exact as others.
    """
    size = table.norm(dim=0)
    present = (size > 0).nonzero()[:, 0]
    rest = table[:, present] / size[present]
    original, chosen, basis = rest.clone(), [], torch.zeros(len(table), 0, dtype=table.dtype)
    for _ in range(min(rest.shape)):
        left = rest.square().sum(0)
        column = int(left.argmax())
        if float(left[column]) <= EXACT**2:
            break
        direction = original[:, column] - basis @ (basis.T @ original[:, column])
        direction = direction - basis @ (basis.T @ direction)
        direction = direction / direction.norm()
        basis = torch.cat([basis, direction[:, None]], dim=1)
        rest = rest - torch.outer(direction, direction @ rest)
        chosen.append(column)
    columns = present[torch.tensor(chosen, dtype=torch.int64)]
    psi = torch.zeros(len(chosen), table.shape[1], dtype=table.dtype)
    if chosen:
        # basis' own coordinates: table[:, columns] = basis @ triangle
        triangle = (basis.T @ table[:, columns]).triu()
        psi = torch.linalg.solve_triangular(triangle, basis.T @ table, upper=True)
        psi[:, columns] = torch.eye(len(chosen), dtype=table.dtype)
    return table[:, columns], psi
