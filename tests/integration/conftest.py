"""The fixtures of the tests with real processes."""

from racks import found_rack, me, nursery, private_place, rack, yard
from screen import attached, bequest
from unchanged import region

__all__ = ["attached", "bequest", "found_rack", "me", "nursery", "private_place", "rack", "region", "yard"]
