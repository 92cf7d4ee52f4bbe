"""Draw what the tables say over four of the sample images: the picture in the README.

make demo && python docs/overlay.py data/runs docs/demo.png
"""

import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont, ImageOps

NAMES = ["formats/scene.jpg", "orientation/exif-6.jpg", "orientation/irot.heic", "large/six objects.png"]
HEIGHT_PX = 300
GAP_PX = 12
LINE = (230, 0, 120)


def main(output: str, picture: str) -> None:
    images = pq.read_table(f"{output}/images").to_pandas()
    annotations = pq.read_table(f"{output}/annotations").to_pandas()
    newest = images.run.astype(str).max()
    panels = []
    for name in NAMES:
        uri = images[(images.run == newest) & (images.file_name == name)].uri.iloc[0]
        rows = annotations[(annotations.run == newest) & (annotations.file_name == name)]
        panels.append(draw(Path(unquote(urlsplit(uri).path)), rows[rows.prompt == "outlines"]))
    join(panels).save(picture, optimize=True)


def draw(path: Path, rows: pd.DataFrame) -> Image.Image:
    """One image, upright, with boxes, outlines and labels."""
    with Image.open(path) as stored:
        image = ImageOps.exif_transpose(stored).convert("RGB")
    scale = HEIGHT_PX / image.height
    image = image.resize((round(image.width * scale), HEIGHT_PX))
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(13)
    for row in rows.itertuples():
        pen.rectangle([scale * value for value in (row.xmin, row.ymin, row.xmax, row.ymax)], outline=LINE, width=2)
        for ring in row.polygons:
            pen.polygon([scale * value for value in ring], outline=(20, 20, 20), width=2)
        place = (scale * row.xmin, scale * row.ymin - 18)
        pen.rectangle(pen.textbbox(place, row.label, font=font), fill="white")
        pen.text(place, row.label, fill=LINE, font=font)
    return image


def join(panels: list[Image.Image]) -> Image.Image:
    width = sum(panel.width for panel in panels) + GAP_PX * (len(panels) + 1)
    sheet = Image.new("RGB", (width, HEIGHT_PX + 2 * GAP_PX), "white")
    left = GAP_PX
    for panel in panels:
        sheet.paste(panel, (left, GAP_PX))
        left += panel.width + GAP_PX
    return sheet


if __name__ == "__main__":
    import pillow_heif

    pillow_heif.register_heif_opener()
    main(*sys.argv[1:3])
