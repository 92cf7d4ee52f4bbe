"""XML of any text that a model may have said."""

import re
from collections.abc import Mapping
from xml.etree.ElementTree import Element, SubElement

# XML 1.0 has no way to write these, not even escaped
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml_text(text: str) -> str:
    """The text with U+FFFD for each character that XML cannot hold, and with the line ends that readers make of all."""
    return _NOT_IN_XML.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def label_names(categories: Mapping[str, int]) -> dict[str, str]:
    """What each label is called in XML, no two of them alike.

    Of labels that XML would make one, those with the higher ids have their id behind them: `car (7)`. Ids are never
    given again, so that a label keeps its name.
    """
    names: dict[str, str] = {}
    taken = set[str]()
    for label, number in categories.items():
        name = xml_text(label)
        while name in taken:
            name = f"{name} ({number})"
        names[label] = name
        taken.add(name)
    return names


def add_texts(parent: Element, **texts: object) -> None:
    """An element for each, in order, with its text inside."""
    for name, text in texts.items():
        SubElement(parent, name).text = xml_text(str(text))


def decimal(number: float) -> str:
    """Three digits after the point at most, and none that say nothing."""
    return f"{number:.3f}".rstrip("0").rstrip(".")
