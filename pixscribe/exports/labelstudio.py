"""Label Studio: `tasks.json` with predictions to import, and `config.xml`, the labelling interface that shows them.

Each prompt is one control of the interface: boxes are `RectangleLabels`, outlines `PolygonLabels`, captions and answers
`TextArea`, classes `Choices`. An outline stands for its box too, which is then the one around it. An outline of several
rings becomes as many polygons, which say so in their notes, beside the flags; an object of a segment prompt that has a
box alone is the box's four corners, to be drawn finer. There are no brush masks: every mask of the tables has outlines
too, people can move their corners, and Label Studio's own converters to COCO and YOLO pass brushes over. Holes are
filled.

A picture in the data set is named by its path below it, for Label Studio's local files: its document root should be the
folder of the data set. Without pictures, what lies in a bucket or on the web is named by its URI, and a file of this
machine by its path below `/`.

Characters that XML or Label Studio's database cannot hold are U+FFFD. A label such as `$image` is kept, but shown as
what the task has by that name.
"""

import colorsys
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar
from urllib.parse import quote, unquote
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

import orjson

from pixscribe.exports.base import BOX_KINDS, LABEL_KINDS, Dataset, DatasetImage, Exporter
from pixscribe.exports.content import ALL_KINDS, bbox_of, classes_of, text_of
from pixscribe.exports.xmltext import xml_text
from pixscribe.storage import is_bucket
from pixscribe.tables import Row
from pixscribe.types import Kind

MAX_FILE_BYTES = 100_000_000
"""A file is ended when it has passed this: Label Studio takes 250 MB at once."""
LOCAL_FILES = "/data/local-files/?d="
GOLDEN_RATIO = 0.618034

Part = dict[str, Any]


class LabelStudioExporter(Exporter):
    """One task for each image, with one prediction for each model that answered; mostly one."""

    kinds: ClassVar[frozenset[Kind]] = ALL_KINDS
    picture_folder: ClassVar[str] = "images"
    max_file_bytes: ClassVar[int] = MAX_FILE_BYTES

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self._picture_name = _free_name("image", dataset.prompts)
        # of boxes, and of whole images
        self._labels_seen: dict[bool, set[str]] = {True: set(), False: set()}
        self._count = self._files = 0
        self._open_file()

    def add(self, image: DatasetImage) -> None:
        if self._file.tell() > self.max_file_bytes:
            self._end_file()
            self._open_file()
        self._count += 1
        for found in image.rows.annotations:
            kind = self.dataset.prompts[found["prompt"]]
            if kind in LABEL_KINDS:
                self._labels_seen[kind in BOX_KINDS].add(found["label"])
        self._file.write((b",\n" if self._file.tell() > 1 else b"\n") + orjson.dumps(self._task(image)))

    def close(self) -> None:
        self._end_file()
        if self._files == 1:
            self._path.rename(self.dataset.root / "tasks.json")
        tree = ElementTree(self._config())
        indent(tree)
        tree.write(self.dataset.root / "config.xml", encoding="utf-8")
        (self.dataset.root / "README.md").write_text(_how_to_import(self.dataset, self._files), encoding="utf-8")

    def _open_file(self) -> None:
        self._path = self.dataset.root / f"tasks-{self._files:05d}.json"
        self._file = self.resources.enter_context(self._path.open("wb", 1 << 20))
        self._files += 1
        self._file.write(b"[")

    def _end_file(self) -> None:
        self._file.write(b"\n]\n")
        self._file.close()

    def _task(self, image: DatasetImage) -> Part:
        source = image.rows.image
        return {
            "id": self._count,
            "data": {
                self._picture_name: _place_of(image),
                "file_name": xml_text(source["file_name"]),
                "sha256": source["image_id"],
            },
            "predictions": self._predictions(image),
        }

    def _predictions(self, image: DatasetImage) -> list[Part]:
        """By the version of the model; one that is empty if nothing was answered."""
        results: dict[str, list[Part]] = {}
        for response in image.rows.responses:
            if response["status"] != "failed":
                parts = self._parts(image, response["prompt"])
                results.setdefault(_version_of(response), []).extend(parts)
        return [{"model_version": version, "result": result} for version, result in results.items()] or [{"result": []}]

    def _parts(self, image: DatasetImage, prompt: str) -> Iterator[Part]:
        """What Label Studio calls results: regions of the image, or one choice or text for all of it."""
        kind = self.dataset.prompts[prompt]
        common = {"from_name": prompt, "to_name": self._picture_name}
        if kind in BOX_KINDS:
            for found in image.rows.annotations:
                if found["prompt"] == prompt:
                    for part in _regions(found, image, kind):
                        yield common | part
        elif kind == "classify":
            classes = classes_of(image, prompt)
            if classes:
                value = {"choices": list(dict.fromkeys(map(xml_text, classes)))}
                yield {**common, "id": prompt, "type": "choices", "value": value}
        elif (text := text_of(image, prompt)) is not None:
            yield {**common, "id": prompt, "type": "textarea", "value": {"text": [xml_text(text)]}}

    def _config(self) -> Element:
        root = Element("View")
        SubElement(root, "Image", name=self._picture_name, value=f"${self._picture_name}", zoom="true")
        for prompt, kind in self.dataset.prompts.items():
            SubElement(root, "Header", value=prompt, size="5")
            control = {"name": prompt, "toName": self._picture_name}
            match kind:
                case "detect" | "segment":
                    tag = "RectangleLabels" if kind == "detect" else "PolygonLabels"
                    self._add_labels(SubElement(root, tag, control))
                case "classify":
                    choices = SubElement(root, "Choices", control, choice="multiple")
                    for label in self._labels(of_boxes=False):
                        SubElement(choices, "Choice", value=label)
                case "caption" | "ask":
                    SubElement(root, "TextArea", control, rows="3", editable="true", maxSubmissions="1")
        return root

    def _add_labels(self, parent: Element) -> None:
        """Label Studio's converters keep to our ids where a label has a `category`."""
        for label, number in self._labels(of_boxes=True).items():
            SubElement(parent, "Label", value=label, background=_colour(number), category=str(number))

    def _labels(self, *, of_boxes: bool) -> dict[str, int]:
        """All categories but those that only prompts of the other sort have used."""
        own, others = self._labels_seen[of_boxes], self._labels_seen[not of_boxes]
        ids: dict[str, int] = {}
        for label, number in self.dataset.categories.items():
            if label in own or label not in others:
                ids.setdefault(xml_text(label), number)
        return ids


def _regions(found: Row, image: DatasetImage, kind: Kind) -> Iterator[Part]:
    """One for a box, one for each ring of an outline, with ids that say which."""
    base = {"original_width": image.width, "original_height": image.height, "image_rotation": 0}
    if found["score"] is not None:
        base["score"] = found["score"]
    name = f"{found['prompt']}-{found['index']}"
    if kind == "detect":
        value = _rectangle(found, image)
        yield {**base, "id": name, "type": "rectanglelabels", "value": value, **_notes(found["flags"])}
        return
    rings = found["polygons"] or [_corners(found)]
    for number, ring in enumerate(rings, 1):
        several = {"id": f"{name}-{number}", **_notes([f"part {number} of {len(rings)}", *found["flags"]])}
        single = {"id": name, **_notes(found["flags"])}
        value = _polygon(ring, found, image)
        yield {**base, "type": "polygonlabels", "value": value, **(several if len(rings) > 1 else single)}


def _rectangle(found: Row, image: DatasetImage) -> Part:
    """In percent of the upright image's sides, as all of Label Studio's numbers."""
    x, y, width, height = bbox_of(found)
    return {
        "x": x / image.width * 100,
        "y": y / image.height * 100,
        "width": width / image.width * 100,
        "height": height / image.height * 100,
        "rotation": 0,
        "rectanglelabels": [xml_text(found["label"])],
    }


def _polygon(ring: list[float], found: Row, image: DatasetImage) -> Part:
    corners = zip(ring[::2], ring[1::2], strict=True)
    points = [[x / image.width * 100, y / image.height * 100] for x, y in corners]
    return {"points": points, "closed": True, "polygonlabels": [xml_text(found["label"])]}


def _corners(found: Row) -> list[float]:
    xmin, ymin, xmax, ymax = (found[edge] for edge in ("xmin", "ymin", "xmax", "ymax"))
    return [xmin, ymin, xmax, ymin, xmax, ymax, xmin, ymax]


def _notes(lines: Iterable[str]) -> Part:
    """What a person sees beside a region."""
    text = list(lines)
    return {"meta": {"text": text}} if text else {}


def _version_of(response: Row) -> str:
    return xml_text(f"{response['model']}, parser {response['parser_version']}")


def _place_of(image: DatasetImage) -> str:
    if image.picture:
        return LOCAL_FILES + quote(f"{LabelStudioExporter.picture_folder}/{image.name}")
    uri: str = image.rows.image["uri"]
    if uri.startswith("file:///"):
        return LOCAL_FILES + uri.removeprefix("file:///")
    if not is_bucket(uri):
        return uri
    # Label Studio takes the key as it stands
    scheme, _, rest = unquote(uri).partition("://")
    place, _, key = rest.partition("/")
    return f"azure-blob://{place.partition('@')[0]}/{key}" if scheme.startswith("abfs") else f"{scheme}://{rest}"


def _free_name(name: str, taken: Iterable[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _colour(number: int) -> str:
    """Hues a golden section apart: near numbers look different, and more of them never repeat."""
    parts = colorsys.hls_to_rgb(number * GOLDEN_RATIO % 1, 0.5, 0.7)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


def _how_to_import(dataset: Dataset, files: int) -> str:
    tasks = "`tasks.json`" if files == 1 else f"the {files} files `tasks-*.json`, one after the other"
    root, folder = ("this folder", "`images`") if dataset.has_pictures else ("`/`", "the folder of the pictures")
    return f"""# {dataset.name}

1. Start Label Studio with `LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true` and `LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT`
   set to the absolute path of {root}.
2. Make a project, and put `config.xml` into Settings, Labeling Interface, Code.
3. In Settings, Cloud Storage, add a source storage of type Local files with the absolute path of {folder}, and do not
   sync it.
4. Import {tasks}. The answers are predictions; Settings, Annotation says which version is shown.

Pictures in a bucket or on the web need no local files: add their bucket as a source storage instead.
"""
