"""Pixeltable: a table of images with a computed column. A rerun inserts what is not in the table yet."""

import time

import pixeltable as pxt
from pixeltable.functions import gemini
from question import CONFIG, MODEL, PROMPT, Job, read_job, report


def main(job: Job) -> list[object]:
    table = pxt.create_table("answers", {"file_name": pxt.String, "image": pxt.Image}, if_exists="ignore")
    contents = [PROMPT, table.image]
    response = gemini.generate_content(contents, model=MODEL, config=CONFIG)
    table.add_computed_column(response=response, if_exists="ignore")
    known = set(table.select(table.file_name).collect()["file_name"])
    wanted = {path.name: path for path in job.paths()}
    rows = [{"file_name": name, "image": str(path)} for name, path in wanted.items() if name not in known]
    if rows:
        table.insert(rows, on_error="ignore")
    text = table.response["candidates"][0]["content"]["parts"][0]["text"]
    found = table.select(table.file_name, text=text).collect()
    return [row["text"] for row in found if row["file_name"] in wanted]


if __name__ == "__main__":
    started_s = time.monotonic()
    report(started_s, main(read_job()))
