"""Image files, good and bad, made here and prepared for sending."""

import contextlib
import hashlib
import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pillow_heif
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile

from pixscribe.errors import DecodeError
from pixscribe.image import ImageRules, prepare_image, read_header
from pixscribe.types import PreparedImage

RULES = ImageRules()
RED, GREEN, BLUE, WHITE = (220, 20, 20), (20, 200, 20), (20, 20, 220), (250, 250, 250)


def corners(width: int = 48, height: int = 32, mode: str = "RGB") -> Image.Image:
    """Upright: red top left, green top right, blue bottom left, white bottom right."""
    image = Image.new("RGB", (width, height), WHITE)
    image.paste(RED, (0, 0, width // 2, height // 2))
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    return image.convert(mode)


def corners_of(image: Image.Image) -> list[str]:
    """The names of the colours at top left, top right, bottom left, bottom right."""
    names = {"red": RED, "green": GREEN, "blue": BLUE, "white": WHITE}
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    seen = [pixels[y, x] for y in (3, -4) for x in (3, -4)]
    return [min(names, key=lambda name: float(np.abs(color - names[name]).sum())) for color in seen]


UPRIGHT = ["red", "green", "blue", "white"]


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    target = io.BytesIO()
    if format_name == "HEIF":
        pillow_heif.from_pillow(image).save(target, quality=90, **options)
    else:
        image.save(target, format_name, **options)
    return target.getvalue()


def exif_block(orientation: Any = None) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()


def opened(prepared: PreparedImage) -> Image.Image:
    """As the model sees it: no orientation applied."""
    if prepared.sent_mime_type in ("image/heic", "image/heif"):
        return pillow_heif.open_heif(prepared.data).to_pillow()
    return Image.open(io.BytesIO(prepared.data))


def refusal(data: bytes, rules: ImageRules = RULES) -> str:
    with pytest.raises(DecodeError) as caught:
        prepare_image(data, rules)
    assert str(caught.value)
    return caught.value.code


JPEG, PNG, WEBP, HEIC = (encoded(corners(), name) for name in ("JPEG", "PNG", "WEBP", "HEIF"))
HEIF = HEIC[:8] + b"mif1" + HEIC[12:]
TIFF, BMP, GIF, AVIF = (encoded(corners(), name) for name in ("TIFF", "BMP", "GIF", "AVIF"))
EVERY_FORMAT = {
    "image/jpeg": JPEG,
    "image/png": PNG,
    "image/webp": WEBP,
    "image/heic": HEIC,
    "image/heif": HEIF,
    "image/tiff": TIFF,
    "image/bmp": BMP,
    "image/gif": GIF,
    "image/avif": AVIF,
}
SENT_AS_THEY_ARE = ("image/jpeg", "image/png", "image/webp", "image/heic", "image/heif")
CONVERTED = {"image/tiff": "image/png", "image/bmp": "image/png", "image/gif": "image/png", "image/avif": "image/jpeg"}


# What is sent as it is


@pytest.mark.parametrize("mime_type", SENT_AS_THEY_ARE)
def test_the_types_of_gemini_are_sent_byte_for_byte(mime_type: str) -> None:
    data = EVERY_FORMAT[mime_type]
    digest = hashlib.sha256(data).hexdigest()
    prepared = prepare_image(data, RULES)
    assert prepared.data is data
    assert prepared == PreparedImage(
        image_id=digest,
        size_bytes=len(data),
        width=48,
        height=32,
        exif_orientation=1,
        mime_type=mime_type,
        data=data,
        sent_mime_type=mime_type,
        sent_width=48,
        sent_height=32,
        sent_sha256=digest,
        flags=(),
    )


@pytest.mark.parametrize("mime_type", EVERY_FORMAT)
def test_the_header_says_the_same_without_decoding(mime_type: str) -> None:
    header = read_header(EVERY_FORMAT[mime_type], RULES)
    assert (header.mime_type, header.width, header.height, header.frames) == (mime_type, 48, 32, 1)
    assert header.needs_pixels == (mime_type in CONVERTED)
    assert header.decode_px == 48 * 32


def test_bytes_after_the_end_of_a_picture_are_legal() -> None:
    for data in (JPEG, PNG, WEBP, HEIC):
        assert prepare_image(data + b"a phone's trailer, 0123456789", RULES).width == 48


def test_a_phone_jpeg_with_a_second_picture_is_a_jpeg() -> None:
    data = encoded(corners(), "MPO", save_all=True, append_images=[corners(24, 16)])
    prepared = prepare_image(data, RULES)
    assert (prepared.mime_type, prepared.data, prepared.flags) == ("image/jpeg", data, ())


@pytest.mark.parametrize("kind", [{"progressive": True}, {"quality": 95, "subsampling": "4:2:0", "optimize": True}])
def test_any_usual_jpeg_is_sent_as_it_is(kind: dict[str, Any]) -> None:
    data = encoded(corners(), "JPEG", **kind)
    assert prepare_image(data, RULES).data is data


def test_grey_and_palette_and_one_bit_are_sent_as_they_are() -> None:
    for mode, format_name in (("L", "JPEG"), ("L", "PNG"), ("P", "PNG"), ("1", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP")):
        data = encoded(corners(mode=mode), format_name)
        assert prepare_image(data, RULES).data is data


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [True, False])
def test_each_layout_of_webp_has_its_size_read(mode: str, lossless: bool) -> None:
    header = read_header(encoded(corners(301, 200, mode), "WEBP", lossless=lossless), RULES)
    assert (header.width, header.height) == (301, 200)


# Turning


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("format_name", "options"), [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {})])
def test_every_orientation_is_applied_to_the_pixels(
    format_name: str, options: dict[str, Any], orientation: int
) -> None:
    data = encoded(stored_for(orientation), format_name, exif=exif_block(orientation), **options)
    prepared = prepare_image(data, RULES)
    sent = opened(prepared)
    assert corners_of(sent) == UPRIGHT
    assert sent.size == (48, 32) == (prepared.width, prepared.height) == (prepared.sent_width, prepared.sent_height)
    assert prepared.exif_orientation == orientation
    assert prepared.mime_type == prepared.sent_mime_type == f"image/{format_name.lower()}"
    assert (prepared.data is data) == (orientation == 1)
    assert sent.getexif().get(ExifTags.Base.Orientation, 1) == 1


def stored_for(orientation: int) -> Image.Image:
    """The pixels which this tag makes upright, worked out from the words of the EXIF standard: where the 0th row and
    the 0th column of the stored picture are in the upright one.
    """
    rows_and_columns = np.asarray(corners())
    stored = {
        1: rows_and_columns,  # top, left
        2: rows_and_columns[:, ::-1],  # top, right
        3: rows_and_columns[::-1, ::-1],  # bottom, right
        4: rows_and_columns[::-1],  # bottom, left
        5: rows_and_columns.swapaxes(0, 1),  # left, top
        6: rows_and_columns[:, ::-1].swapaxes(0, 1),  # right, top
        7: rows_and_columns[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: rows_and_columns[::-1].swapaxes(0, 1),  # left, bottom
    }
    return Image.fromarray(np.ascontiguousarray(stored[orientation]))


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_tiff_is_turned_once(compression: str, orientation: int) -> None:
    data = encoded(stored_for(orientation), "TIFF", tiffinfo={274: orientation}, compression=compression)
    prepared = prepare_image(data, RULES)
    assert corners_of(opened(prepared)) == UPRIGHT
    assert (prepared.width, prepared.height, prepared.exif_orientation) == (48, 32, orientation)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_an_avif_is_turned_once(orientation: int) -> None:
    data = encoded(stored_for(orientation), "AVIF", quality=95, exif=exif_block(orientation))
    prepared = prepare_image(data, RULES)
    assert corners_of(opened(prepared)) == UPRIGHT
    assert (prepared.width, prepared.height) == (48, 32)


@pytest.mark.parametrize(
    "exif",
    [
        pytest.param(exif_block(), id="no-orientation"),
        pytest.param(exif_block(0), id="0"),
        pytest.param(exif_block(9), id="9"),
        pytest.param(exif_block(6)[:20], id="cut"),
        pytest.param(b"Exif\0\0garbage", id="garbage"),
        pytest.param(b"Exif\0\0II*\0\xff\xff\xff\xff", id="far-away"),
    ],
)
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
def test_an_invalid_orientation_counts_as_upright(format_name: str, exif: bytes) -> None:
    data = encoded(corners(), format_name, exif=exif)
    prepared = prepare_image(data, RULES)
    assert (prepared.exif_orientation, prepared.data) == (1, data)


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_tag_is_read_in_either_byte_order(order: str) -> None:
    start = b"II*\0" if order == "<" else b"MM\0*"
    block = b"Exif\0\0" + start + struct.pack(f"{order}IHHHIHHI", 8, 1, 274, 3, 1, 6, 0, 0)
    assert read_header(encoded(corners(), "JPEG", exif=block), RULES).exif_orientation == 6


@pytest.mark.parametrize("format_name", ["JPEG", "TIFF"])
def test_an_orientation_that_only_xmp_mentions_is_ignored(format_name: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    options: dict[str, Any] = {"tiffinfo": {700: xmp}} if format_name == "TIFF" else {"xmp": xmp}
    prepared = prepare_image(encoded(corners(), format_name, **options), RULES)
    assert (prepared.width, prepared.height, prepared.exif_orientation) == (48, 32, 1)
    assert corners_of(opened(prepared)) == UPRIGHT


def test_the_rotation_box_of_a_heic_counts_once_and_its_tag_not() -> None:
    data = encoded(stored_for(6), "HEIF", exif=exif_block(6))
    assert b"irot" in data
    prepared = prepare_image(data, RULES)
    assert prepared.data is data
    assert (prepared.width, prepared.height, prepared.sent_width, prepared.sent_height) == (48, 32, 48, 32)
    assert corners_of(opened(prepared)) == UPRIGHT
    assert corners_of(opened(prepare_image(data, ImageRules(max_side_px=24)))) == UPRIGHT


def test_the_exif_tag_of_a_heic_without_rotation_box_is_ignored() -> None:
    turned = encoded(corners(), "HEIF", exif=exif_block(6))
    box = turned.index(b"irot") + 4
    prepared = prepare_image(turned[:box] + b"\0" + turned[box + 1 :], RULES)
    assert (prepared.width, prepared.height, prepared.exif_orientation) == (48, 32, 6)


# Converting


@pytest.mark.parametrize("mime_type", CONVERTED)
def test_other_types_are_converted_to_one_that_gemini_takes(mime_type: str) -> None:
    prepared = prepare_image(EVERY_FORMAT[mime_type], RULES)
    assert prepared.sent_mime_type == CONVERTED[mime_type]
    assert corners_of(opened(prepared)) == UPRIGHT
    assert prepared.image_id == hashlib.sha256(EVERY_FORMAT[mime_type]).hexdigest()
    assert prepared.sent_sha256 == hashlib.sha256(prepared.data).hexdigest()


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    prepared = prepare_image(encoded(corners(mode="CMYK"), "JPEG", quality=95), RULES)
    sent = opened(prepared)
    assert (prepared.sent_mime_type, sent.mode, corners_of(sent)) == ("image/jpeg", "RGB", UPRIGHT)


def test_a_cmyk_tiff_becomes_an_rgb_jpeg() -> None:
    prepared = prepare_image(encoded(corners(mode="CMYK"), "TIFF"), RULES)
    assert (prepared.sent_mime_type, corners_of(opened(prepared))) == ("image/jpeg", UPRIGHT)


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_by_its_full_range(format_name: str) -> None:
    deep = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    prepared = prepare_image(encoded(Image.fromarray(deep), format_name), RULES)
    assert prepared.sent_mime_type == "image/png"
    assert np.asarray(opened(prepared)).tolist() == [[0, 1, 128, 255]]


def test_16_bit_colors_become_8_bit() -> None:
    row = b"\0" + struct.pack(">6H", 65535, 0, 0, 0, 32768, 65535)
    sent = opened(prepare_image(png(2, 1, 16, 2, zlib.compress(row)), RULES))
    assert (sent.mode, sent.getpixel((0, 0)), sent.getpixel((1, 0))) == ("RGB", (255, 0, 0), (0, 128, 255))


def test_a_signed_or_floating_or_inverted_tiff_is_refused() -> None:
    assert refusal(encoded(Image.new("F", (4, 4), 0.5), "TIFF")) == "unsupported_type"
    assert refusal(encoded(Image.new("I", (4, 4), 70000), "TIFF")) == "unsupported_type"
    inverted = encoded(Image.fromarray(np.zeros((4, 4), np.uint16)), "TIFF", tiffinfo={262: 0})
    photometric = inverted.index(struct.pack("<HHI", 262, 3, 1)) + 8
    assert refusal(inverted[:photometric] + b"\0\0" + inverted[photometric + 2 :]) == "unsupported_type"


def test_a_raw_photo_is_refused_because_its_first_page_is_a_thumbnail() -> None:
    assert refusal(encoded(corners(), "TIFF", tiffinfo={254: 1})) == "unsupported_type"


def test_transparency_is_kept() -> None:
    image = Image.new("RGBA", (10, 10), (200, 0, 0, 100))
    prepared = prepare_image(encoded(image, "PNG", exif=exif_block(3)), RULES)
    assert opened(prepared).getpixel((0, 0)) == (200, 0, 0, 100)
    prepared = prepare_image(encoded(image, "TIFF"), RULES)
    assert opened(prepared).getpixel((0, 0)) == (200, 0, 0, 100)


def test_transparent_heic_and_avif_become_png_when_made_smaller() -> None:
    image = Image.new("RGBA", (80, 80), (200, 0, 0, 0))
    for format_name in ("HEIF", "AVIF"):
        prepared = prepare_image(encoded(image, format_name), ImageRules(max_side_px=40))
        sent = opened(prepared)
        assert (prepared.sent_mime_type, sent.mode) == ("image/png", "RGBA")
        assert np.asarray(sent)[..., 3].max() < 8


def test_a_transparent_palette_entry_becomes_alpha() -> None:
    image = corners(mode="P")
    for transparency in (image.getpixel((0, 0)), bytes([0] * 256)):
        data = encoded(image, "PNG", transparency=transparency, exif=exif_block(2))
        sent = opened(prepare_image(data, RULES))
        assert sent.mode == "RGBA"
        assert sent.getpixel((47, 0))[3] == 0  # type: ignore[index]


def test_grey_with_alpha_can_be_turned_and_reduced() -> None:
    for mode in ("LA", "L", "1"):
        prepared = prepare_image(encoded(corners(mode=mode), "PNG", exif=exif_block(6)), ImageRules(max_side_px=24))
        assert (prepared.sent_width, prepared.sent_height) == (16, 24)
        assert opened(prepared).mode == ("LA" if mode == "LA" else "L")


def test_a_profile_stays_only_where_it_fits_the_pixels() -> None:
    rgb_profile = b"\0" * 16 + b"RGB " + b"\0" * 200
    turned = prepare_image(encoded(corners(), "JPEG", icc_profile=rgb_profile, exif=exif_block(3)), RULES)
    assert opened(turned).info["icc_profile"] == rgb_profile
    cmyk_profile = rgb_profile.replace(b"RGB ", b"CMYK")
    converted = prepare_image(encoded(corners(mode="CMYK"), "JPEG", icc_profile=cmyk_profile), RULES)
    assert "icc_profile" not in opened(converted).info


# Several frames


def frames(count: int = 3) -> list[Image.Image]:
    return [corners(), *(Image.new("RGB", (48, 32), (80 * index, 0, 0)) for index in range(1, count))]


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_of_several_frames_the_first_is_sent_and_flagged(format_name: str) -> None:
    first, *others = frames()
    data = encoded(first, format_name, save_all=True, append_images=others)
    prepared = prepare_image(data, RULES)
    sent = opened(prepared)
    assert prepared.flags == ("first_frame",)
    assert corners_of(sent) == UPRIGHT
    assert getattr(sent, "n_frames", 1) == 1
    assert read_header(data, RULES).frames == 3


def test_a_heif_with_several_pictures_is_sent_as_it_is_and_flagged() -> None:
    heif = pillow_heif.from_pillow(corners())
    heif.add_from_pillow(Image.new("RGB", (48, 32)))
    target = io.BytesIO()
    heif.save(target)
    prepared = prepare_image(target.getvalue(), RULES)
    assert (prepared.flags, prepared.data) == (("first_frame",), target.getvalue())


# Making smaller


@pytest.mark.parametrize("mime_type", EVERY_FORMAT)
def test_max_side_reduces_what_is_sent_and_not_what_is_measured(mime_type: str) -> None:
    data = encoded(corners(400, 200), *encoder_of(mime_type))
    prepared = prepare_image(data, ImageRules(max_side_px=100))
    sent = opened(prepared)
    assert (prepared.width, prepared.height) == (400, 200)
    assert (prepared.sent_width, prepared.sent_height) == sent.size == (100, 50)
    assert corners_of(sent) == UPRIGHT


def encoder_of(mime_type: str) -> tuple[str]:
    name = mime_type.removeprefix("image/").upper()
    return ("HEIF" if name == "HEIC" else name,)


def test_an_image_within_max_side_is_not_touched() -> None:
    assert prepare_image(JPEG, ImageRules(max_side_px=48)).data is JPEG


def test_the_upright_longer_side_counts() -> None:
    data = encoded(corners(400, 200), "JPEG", exif=exif_block(6))
    prepared = prepare_image(data, ImageRules(max_side_px=100))
    assert (prepared.width, prepared.height, prepared.sent_width, prepared.sent_height) == (200, 400, 50, 100)


def test_a_long_strip_keeps_at_least_one_pixel() -> None:
    prepared = prepare_image(encoded(Image.new("RGB", (193, 31237)), "PNG"), ImageRules(max_side_px=64))
    assert (prepared.width, prepared.height, prepared.sent_width, prepared.sent_height) == (193, 31237, 1, 64)


def test_one_pixel_is_an_image() -> None:
    for format_name in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"):
        prepared = prepare_image(encoded(Image.new("RGB", (1, 1)), format_name), RULES)
        assert (prepared.width, prepared.height, prepared.sent_width, prepared.sent_height) == (1, 1, 1, 1)


def test_a_jpeg_decoded_at_reduced_size_keeps_its_edges_in_place() -> None:
    """The edge at x = 501 of 1003 has to come out at 501/1003 of the width, though an eighth of 1003 is not whole."""
    image = Image.new("L", (1003, 640), 0)
    image.paste(255, (501, 0, 1003, 640))
    prepared = prepare_image(encoded(image, "JPEG", quality=95), ImageRules(max_side_px=100))
    white_columns = np.asarray(opened(prepared), dtype=float).mean(axis=0).sum() / 255
    assert 100 - white_columns == pytest.approx(100 * 501 / 1003, abs=0.03)


# What is refused


@pytest.mark.parametrize("mime_type", EVERY_FORMAT)
@pytest.mark.parametrize("part", [0.0, 0.02, 0.3, 0.6, 0.9, 0.99, -1])
def test_a_cut_file_is_refused(mime_type: str, part: float) -> None:
    data = EVERY_FORMAT[mime_type]
    length = len(data) - 1 if part < 0 else int(part * len(data))
    assert refusal(data[:length]) == "decode_error"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"<!DOCTYPE html><html><body>Not found</body></html>", id="html"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", id="eps"),
        pytest.param(encoded(corners(), "PPM"), id="ppm"),
        pytest.param(encoded(corners(), "TGA"), id="tga"),
        pytest.param(encoded(corners(), "ICO"), id="ico"),
        pytest.param(encoded(corners(), "PDF"), id="pdf"),
        pytest.param(b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + b"\0" * 40, id="mp4"),
        pytest.param(b"BMW, Audi and other cars are text", id="text"),
        pytest.param(b"\0" * 1000, id="zeros"),
    ],
)
def test_other_content_is_no_supported_type(data: bytes) -> None:
    assert refusal(data) == "unsupported_type"


def test_rare_jpegs_are_unsupported() -> None:
    frame_header = JPEG.index(b"\xff\xc0")
    lossless = JPEG[: frame_header + 1] + b"\xc3" + JPEG[frame_header + 2 :]
    deep = JPEG[: frame_header + 4] + b"\x0c" + JPEG[frame_header + 5 :]
    assert (refusal(lossless), refusal(deep)) == ("unsupported_type", "unsupported_type")


def test_a_wrong_checksum_in_a_png_is_seen() -> None:
    position = PNG.index(b"IDAT") + 20
    assert refusal(PNG[:position] + bytes([PNG[position] ^ 1]) + PNG[position + 1 :]) == "decode_error"


def test_more_pixels_than_allowed_are_too_large_in_every_format() -> None:
    for data in EVERY_FORMAT.values():
        assert refusal(data, ImageRules(max_pixels=48 * 32 - 1)) == "too_large"
        assert read_header(data, ImageRules(max_pixels=48 * 32)).decode_px == 48 * 32


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, color: int, pixels: bytes, extra: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def small_png(extra: bytes) -> bytes:
    return png(1, 1, 8, 2, zlib.compress(b"\0\1\2\3"), extra)


def test_a_png_that_claims_ten_billion_pixels_is_too_large() -> None:
    assert refusal(png(100_000, 100_000, 8, 2, zlib.compress(b"\0"))) == "too_large"


FOUR_MIB_OF_ZEROS = zlib.compress(b"\0" * (4 << 20))


@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param(png_chunk(b"zTXt", b"name\0\0" + FOUR_MIB_OF_ZEROS), id="text"),
        pytest.param(png_chunk(b"iTXt", b"name\0\1\0en\0nom\0" + FOUR_MIB_OF_ZEROS), id="international-text"),
        pytest.param(png_chunk(b"iCCP", b"name\0\0" + FOUR_MIB_OF_ZEROS), id="profile"),
        pytest.param(png_chunk(b"zTXt", b"name\0\0" + zlib.compress(b"\0" * 1_000_000)) * 70, id="many"),
    ],
)
def test_chunks_that_unpack_to_megabytes_are_too_large(chunk: bytes) -> None:
    assert refusal(small_png(chunk)) == "too_large"


def test_honest_text_chunks_do_no_harm() -> None:
    chunks = png_chunk(b"zTXt", b"name\0\0" + zlib.compress(b"hello")) + png_chunk(b"zTXt", b"broken\0\0nothing")
    chunks += png_chunk(b"iTXt", b"name\0\0\0en\0nom\0" + b"plain") + png_chunk(b"tEXt", b"name\0" + b"x" * 2_000_000)
    assert prepare_image(small_png(chunks), RULES).width == 1


def gif(frame_count: int) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2\x44\1\0"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0" * 6 + frame * frame_count + b";"


def test_a_gif_of_40_000_frames_is_too_large() -> None:
    assert refusal(gif(40_000)) == "too_large"
    assert read_header(gif(9_000), RULES).frames == 9_000


def test_an_animated_png_that_claims_a_billion_frames_is_too_large() -> None:
    assert refusal(small_png(png_chunk(b"acTL", struct.pack(">II", 10**9, 0)))) == "too_large"


def test_a_tiff_whose_pages_form_a_ring_ends() -> None:
    ifd = struct.unpack_from("<I", TIFF, 4)[0]
    entries = struct.unpack_from("<H", TIFF, ifd)[0]
    next_at = ifd + 2 + 12 * entries
    assert read_header(TIFF[:next_at] + struct.pack("<I", ifd) + TIFF[next_at + 4 :], RULES).frames == 1


def test_a_large_image_is_judged_by_our_limit_and_not_by_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for data in (JPEG, PNG, BMP, GIF, TIFF, HEIC, AVIF):
        assert prepare_image(data, ImageRules(max_side_px=20)).sent_width == 20


# Whatever happens


def whole_or_refused(data: bytes) -> None:
    for rules in (RULES, ImageRules(max_side_px=20, max_pixels=1_000_000)):
        with contextlib.suppress(DecodeError):
            prepared = prepare_image(data, rules)
            assert min(prepared.sent_width, prepared.sent_height) >= 1


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(EVERY_FORMAT)), st.data())
def test_damage_anywhere_raises_nothing_but_a_decode_error(mime_type: str, data: st.DataObject) -> None:
    damaged = bytearray(EVERY_FORMAT[mime_type])
    # Most of what can go wrong sits in the first few hundred bytes.
    positions = st.integers(0, len(damaged) - 1) | st.integers(0, min(400, len(damaged) - 1))
    for position, value in data.draw(st.lists(st.tuples(positions, st.integers(0, 255)), max_size=6)):
        damaged[position] = value
    whole_or_refused(bytes(damaged[: data.draw(st.none() | positions)]))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([b"", b"\xff\xd8\xff", PNG[:33], WEBP[:12], HEIC[:28], GIF[:13], TIFF[:8], BMP[:18]]), st.binary()
)
@example(b"II*\0", b"\x08\0\0\0" + b"\xff" * 40)
@example(PNG[:33], png_chunk(b"eXIf", b"II+\0\x08\0\0\0" + b"\xff" * 40))
def test_noise_raises_nothing_but_a_decode_error(start: bytes, noise: bytes) -> None:
    whole_or_refused(start + noise)


def test_the_same_bytes_give_the_same_result_in_every_thread() -> None:
    jobs = [*EVERY_FORMAT.values(), encoded(corners(), "JPEG", exif=exif_block(6))] * 4
    rules = ImageRules(max_side_px=40)
    with ThreadPoolExecutor(8) as threads:
        parallel = list(threads.map(lambda data: prepare_image(data, rules), jobs))
    assert parallel == [prepare_image(data, rules) for data in jobs]


def test_what_is_encoded_again_is_to_the_byte_what_pillow_makes_of_it() -> None:
    """Request keys depend on these bytes: other ones would have every such image paid for again."""
    lying = encoded(corners(), "JPEG", exif=exif_block(6))
    target = io.BytesIO()
    upright = Image.open(io.BytesIO(lying)).convert("RGB").transpose(Image.Transpose.ROTATE_270)
    upright.save(target, "JPEG", quality=95, subsampling="4:4:4")
    assert prepare_image(lying, RULES).data == target.getvalue()


def test_odd_metadata_neither_warns_nor_spoils_the_picture() -> None:
    filters = list(warnings.filters)
    data = encoded(corners(), "TIFF", description="a description that is not stored inline")
    description = data.index(struct.pack("<HH", 270, 2)) + 4
    odd = data[:description] + struct.pack("<I", 10**6) + data[description + 4 :]
    with pytest.warns(UserWarning, match="larger than file"):
        Image.open(io.BytesIO(odd))
    assert corners_of(opened(prepare_image(odd, RULES))) == UPRIGHT
    assert warnings.filters == filters


def test_pillow_is_left_as_it_was() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    for data in EVERY_FORMAT.values():
        prepare_image(data, ImageRules(max_side_px=20))
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == before == (89_478_485, False)
