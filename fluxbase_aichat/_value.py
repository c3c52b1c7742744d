"""What all frozen values have in common: equality, hash and `repr`, read from their fields.

attrs would write and compile these for each class: of the time that it takes to make one, half.
"""

from __future__ import annotations

from typing import Any, ClassVar

import attrs

__all__ = ["Value"]


class Value:
    """The base of attrs classes with `eq=False, repr=False`; they behave as without these."""

    __slots__ = ()

    __attrs_attrs__: ClassVar[tuple[attrs.Attribute[Any], ...]] = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._compared() == other._compared()

    def __hash__(self) -> int:
        return hash((type(self), self._compared()))

    def __repr__(self) -> str:
        shown = (
            f"{field.name}={getattr(self, field.name)!r}"
            for field in self.__attrs_attrs__
            if field.repr
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    def _compared(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field.name) for field in self.__attrs_attrs__ if field.eq)
