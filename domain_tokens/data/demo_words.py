"""The words of the demo's corpora."""

from __future__ import annotations

NAMES = """
    Ada Amir Anna Ben Carla Chen David Dina Elif Emma Felix Finn Grace Hana Hugo Ida Ivan
    Jack Jana Karl Kofi Lena Liam Lucy Mara Mia Nina Noah Omar Oscar Paul Petra Rosa Sam
    Sara Tariq Tina Tom Vera Yuki
""".split()
CONTAINERS = "bag basket box bucket crate jar pack tray".split()
THINGS = """
    apple bead book button card coin cookie egg flower grape key lemon marble nut orange
    pear pen plum ribbon rose shell stamp sticker stone toy
""".split()
ANIMALS = "cat dog duck goat hen horse mouse owl rabbit sheep".split()
PLACES = "beach farm garden library market museum park river school shop".split()
COLOURS = "black blue brown green orange red white yellow".split()
IRREGULAR_PLURALS = {
    "box": "boxes",
    "mouse": "mice",
    "sheep": "sheep",
}


class Amount(int):
    """A number that writes itself with its noun: `{n:box}` gives `1 box` or `6 boxes`."""

    def __format__(self, noun: str) -> str:
        digits = int.__repr__(self)
        if not noun:
            return digits
        return f"{digits} {noun if self == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """The plural of one of this module's nouns."""
    return IRREGULAR_PLURALS.get(noun, noun + "s")
