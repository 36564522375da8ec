"""The fixtures of the tests with real processes."""

from racks import embedded, me, nursery, private_place, rack, yard

__all__ = ["embedded", "me", "nursery", "private_place", "rack", "yard"]
