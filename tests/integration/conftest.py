"""The fixtures of the tests with real processes."""

from racks import found_rack, me, nursery, private_place, rack, yard

__all__ = ["found_rack", "me", "nursery", "private_place", "rack", "yard"]
