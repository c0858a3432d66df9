"""Inputs of models of molecules and reactions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse.csgraph import shortest_path

from ..catalog import Feed, Sources

RESIDUES = {
    "work": (
        "C",
        "CC",
        "CC(C)",
        "c1ccccc1",
        "c1ccc(Cl)cc1",
        "COc1ccccc1",
        "C1CCCCC1",
        "CCOC(=O)C",
        "c1ccncc1",
        "CC(F)(F)C",
    ),
    "judge": (
        "CCC",
        "CC(C)C",
        "c1ccc(F)cc1",
        "Cc1ccccc1",
        "C1CCCC1",
        "c1ccc(Br)cc1C",
        "COCC",
        "c1ccsc1",
        "c1ccc(C#N)cc1",
        "CC(=O)C",
    ),
}
"""Half -> what acids, amines, alcohols and halides are made of; they bind with their first atom or their last one."""
NUMBERS = {"C": 6, "N": 7, "O": 8, "F": 9, "S": 16, "Cl": 17, "Br": 35}
"""Symbol -> atomic number."""
VALENCES = {"C": 4, "N": 3, "O": 2, "F": 1, "S": 2, "Cl": 1, "Br": 1}
"""Symbol -> bonds of an atom without charge."""
FARTHEST = 10
"""Bonds; greater distances count as this one (chytorch's default max_distance)."""


@dataclass
class Molecule:
    """Atoms by symbol and bonds (atom, atom, order); aromatic bonds have order 1, their atoms one bond more."""

    symbols: list[str] = field(default_factory=list)
    aromatic: list[bool] = field(default_factory=list)
    bonds: list[tuple[int, int, int]] = field(default_factory=list)

    def neighbours(self) -> list[int]:
        """Return how many atoms each atom is bound to, hydrogens among them."""
        counts = []
        for index, symbol in enumerate(self.symbols):
            orders = [order for a, b, order in self.bonds if index in (a, b)]
            free = VALENCES[symbol] - sum(orders) - (self.aromatic[index] and symbol in "CN")
            counts.append(len(orders) + max(0, free))
        return counts

    def distances(self) -> np.ndarray:
        """Return bonds between each two atoms, [atoms, atoms]."""
        adjacent = np.zeros((len(self.symbols),) * 2)
        for a, b, _ in self.bonds:
            adjacent[a, b] = adjacent[b, a] = 1
        return np.asarray(shortest_path(adjacent, unweighted=True))


def parse(smiles: str) -> Molecule:
    """Read SMILES of uncharged atoms without brackets: chains, branches, rings, double, triple and aromatic bonds."""
    made, stack, rings = Molecule(), [], {}
    last, order, place = -1, 1, 0
    while place < len(smiles):
        sign = smiles[place : place + 2] if smiles[place : place + 2] in ("Cl", "Br") else smiles[place]
        place += len(sign)
        if sign == "(":
            stack.append(last)
        elif sign == ")":
            last = stack.pop()
        elif sign in "=#":
            order = " =#".index(sign) + 1
        elif sign.isdigit():
            if sign in rings:
                made.bonds.append((rings.pop(sign), last, order))
            else:
                rings[sign] = last
            order = 1
        else:
            made.symbols.append(sign.capitalize())
            made.aromatic.append(sign.islower())
            if last >= 0:
                made.bonds.append((last, len(made.symbols) - 1, order))
            last, order = len(made.symbols) - 1, 1
    return made


def reactions(sources: Sources) -> Iterator[tuple[list[str], list[str]]]:
    """Yield reactants and products as SMILES: amides, esters and ethers being made, ketones being reduced."""
    random, residues = sources.random, RESIDUES[sources.which]
    while True:
        one, other = (residues[index] for index in random.choice(len(residues), 2, replace=False))
        yield from (
            ([one + "C(=O)O", "N" + other], [one + "C(=O)N" + other, "O"]),
            ([one + "C(=O)O", "OC" + other], [one + "C(=O)OC" + other, "O"]),
            ([one + "CBr", "OC" + other], [one + "COC" + other, "Br"]),
            ([one + "C(=O)C" + other], [one + "C(O)C" + other]),
        )


def reaction_map(sources: Sources) -> Iterator[Feed]:
    """Yield "atoms", "neighbors", "roles" [1, tokens] and "distances" [1, tokens, tokens] of organic reactions.

    As chytorch's ReactionEncoderDataset and MoleculeDataset make them for chython's atom-to-atom mapping (GitHub
    chython/chytorch, utils/data): one token for the reaction (0, 0, role 1), one a molecule (1, 0, role 0), one an
    atom (number + 2; neighbours + 2; role 2 of reactants, 3 of products); distances + 2 in a molecule, at most
    12, 1 to its own token, 0 to others.
    """
    for reactants, products in reactions(sources):
        atoms, neighbours, roles, blocks = [0], [0], [1], [np.ones((1, 1))]
        for role, group in ((2, reactants), (3, products)):
            for smiles in group:
                molecule = parse(smiles)
                count = len(molecule.symbols)
                atoms += [1, *(NUMBERS[symbol] + 2 for symbol in molecule.symbols)]
                neighbours += [0, *(number + 2 for number in molecule.neighbours())]
                roles += [0, *[role] * count]
                block = np.ones((count + 1, count + 1))
                block[1:, 1:] = np.minimum(molecule.distances(), FARTHEST) + 2
                blocks.append(block)
        distances = np.zeros((len(atoms), len(atoms)), np.int64)
        start = 0
        for block in blocks:
            distances[start : start + len(block), start : start + len(block)] = block
            start += len(block)
        row = {"atoms": atoms, "neighbors": neighbours, "roles": roles}
        yield {name: np.array([values], np.int64) for name, values in row.items()} | {"distances": distances[None]}
