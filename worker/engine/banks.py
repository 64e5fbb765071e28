"""Whose terms act on which row of a step: adapters in slots, kept from one step to the next."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from models.nn.executors import NOBODY, Bank, Executor, Packed
from models.nn.slots import Slots
from models.nn.terms import Terms

Owners = list[str | None]


class Banks:
    """The slots of all who share a step, and of each who does not."""

    def __init__(self) -> None:
        self._slots: dict[str | None, Slots] = {}
        self._packed: dict[str | None, tuple[tuple[str | None, ...], Packed]] = {}

    def executor(
        self,
        group: str | None,
        owners: Owners,
        *,
        terms: Mapping[str, Terms],
        device: torch.device,
    ) -> Executor:
        """Return what lets every row's owner act; `terms` holds, by digest, at least these."""
        needed = {owner for owner in owners if owner is not None}
        if not needed:
            return NOBODY
        acting = {digest: terms[digest] for digest in needed}
        if group is not None:
            acting = {digest: replace(own, weights={}) for digest, own in acting.items()}
        bank, slots = self._slots.setdefault(group, Slots()).hold(acting)
        return self._pack(group, tuple(owners), bank=bank, slots=slots, device=device)

    def forget(self, digest: str | None = None) -> None:
        """Free the slots of an adapter, or everything."""
        if digest is None:
            self._slots.clear()
            self._packed.clear()
            return
        for group in (None, digest):
            if group in self._slots:
                self._slots[group].drop(digest)
                self._packed.pop(group, None)
                if not len(self._slots[group]):
                    del self._slots[group]

    def _pack(
        self,
        group: str | None,
        owners: tuple[str | None, ...],
        *,
        bank: Bank,
        slots: Mapping[str, int],
        device: torch.device,
    ) -> Packed:
        """Return the executor of the step before, if the same adapters stand at the same rows."""
        if group in self._packed:
            known, packed = self._packed[group]
            if known == owners and packed.bank is bank:
                return packed
        rows = [slots[owner] if owner else 0 for owner in owners]
        packed = Packed(bank, torch.tensor(rows, device=device))
        self._packed[group] = owners, packed
        return packed
