"""Books: rows, and what has changed in them since somebody last asked."""

from __future__ import annotations

from enum import Enum

import msgspec
import pytest

from bequest.protocol.books import Books, Change, Counter, Row
from rack_in_a_box import as_written


class Mood(Enum):
    CALM = "calm"
    CROSS = "cross"


class Pet(Row):
    name: str
    mood: Mood = Mood.CALM
    tag: bytes = b""
    spots: tuple[int, ...] = ()
    lap: int | None = None  # whose lap it sits on, this time

    transient = ("lap",)


def test_a_book_notes_what_is_put_assigned_and_removed() -> None:
    books = Books()
    pets = books.open("pets", Pet, int)
    cat = pets.put(1, Pet("cat"))
    pets.put(2, Pet("dog"))
    assert [(change.book, change.key, change.row["name"]) for change in books.take_changes()] == [
        ("pets", 1, "cat"),
        ("pets", 2, "dog"),
    ]
    assert books.take_changes() == []
    cat.mood = Mood.CROSS
    cat.spots = (1, 2)
    pets.remove(2)
    assert as_written(books.take_changes()) == [
        Change("pets", 1, {"name": "cat", "mood": "cross", "tag": b"", "spots": [1, 2]}),
        Change("pets", 2, None),
    ]


def test_what_makes_no_sense_in_another_run_is_neither_noted_nor_written() -> None:
    books = Books()
    cat = books.open("pets", Pet, int).put(1, Pet("cat", lap=3))
    (change,) = books.take_changes()
    assert "lap" not in change.row
    cat.lap = 4
    assert books.take_changes() == []


def test_a_removed_row_is_no_longer_the_books() -> None:
    books = Books()
    pets = books.open("pets", Pet, int)
    cat = pets.put(1, Pet("cat"))
    assert pets.remove(1) is cat
    books.take_changes()
    cat.mood = Mood.CROSS
    assert books.take_changes() == []
    with pytest.raises(KeyError):
        pets.remove(1)


def test_what_was_written_down_makes_the_same_book() -> None:
    books = Books()
    pets = books.open("pets", Pet, int)
    for number in range(5):
        pets.put(number, Pet(f"pet {number}", tag=bytes([255, number])))
    books.counter("pets").next()
    log = as_written(books.take_changes())
    pets[3].mood = Mood.CROSS
    pets.remove(0)
    books.counter("pets").next()
    log += as_written(books.take_changes())

    again = Books()
    restored = again.open("pets", Pet, int)
    again.apply(log)
    assert list(restored) == list(pets)
    assert again.counter("pets") == Counter(2)
    assert again.take_changes() == []
    restored[3].mood = Mood.CALM
    assert [change.key for change in again.take_changes()] == [3]
    assert as_written(again.everything()) == as_written(again.everything())


def test_a_counter_passes_by_what_is_known_to_be_used() -> None:
    books = Books()
    assert books.counter("ids").next() == 1
    books.counter("ids").pass_by(7)
    books.counter("ids").pass_by(3)
    assert books.counter("ids").next() == 8


def test_a_book_may_be_changed_while_one_goes_through_it() -> None:
    pets = Books().open("pets", Pet, int)
    pets.put(1, Pet("cat"))
    pets.put(2, Pet("dog"))
    for pet in pets:
        pets.remove(1 if pet.name == "cat" else 2)
    assert len(pets) == 0


def test_rows_of_another_version_are_refused() -> None:
    books = Books()
    books.open("pets", Pet, int)
    with pytest.raises(KeyError):
        books.apply([Change("cars", 1, {})])
    with pytest.raises(msgspec.ValidationError):
        books.apply([Change("pets", 1, {"name": 3})])
