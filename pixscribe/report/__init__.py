"""Pages that show people what the tables say: of a run, and of whatever else has sections and a gallery.

`write_report` (run_report.py) makes the page of a run. Other pages are made of the same parts:

    blocks.py    what a section is made of: `Stats`, `Table`, `Figure`, `Matrix`, `Note`
    charts.py    figures drawn as SVG, each with its numbers as a table
    gallery.py   images with objects drawn over them in named layers, and how such a gallery becomes JSON
    pictures.py  thumbnails of the images of a run, within bytes and seconds
    page.py      `render_page`: one self-contained HTML file of at most `PAGE_BYTES`

    image = gallery_image(rows)                                    # from `ImageRows`; or a `GalleryImage` of your own
    page = render_page(
        Page(
            title="monday → tuesday",
            verdict="12 of 200 images changed",
            parts=(Section("Labels", (Table(...),)), Gallery(images=(image,), images_total=200)),
        )
    )

Nothing in a page is fetched, and no text of a row, an answer or a file name is ever read as markup.
"""

from pixscribe.report.run_report import make_report, write_report

__all__ = ["make_report", "write_report"]
