"""Input images: every good picture becomes the right first frame, every other one is named before the run."""

import struct
from pathlib import Path

import numpy as np
import pytest
from drawn import encoded, pixels, png_header
from PIL import Image

from ti2v_dist.images import ImageError, check_image, load_image

PICTURES = Path(__file__).parent / "pictures"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.fromarray(pixels(64, 64)).save(tmp_path / "ok.png")
    return tmp_path


def test_an_image_of_the_output_size_comes_through_unchanged(folder):
    assert (load_image(str(folder / "ok.png"), 64, 64) == pixels(64, 64)).all()
    info = check_image(str(folder / "ok.png"))
    assert (info.format, info.width, info.height, info.bytes) == ("PNG", 64, 64, (folder / "ok.png").stat().st_size)


def test_the_centre_is_cropped_to_the_outputs_shape(tmp_path):
    image = np.zeros((40, 120, 3), np.uint8)
    image[:, 40:80] = (200, 100, 50)
    image[:, :40] = image[:, 80:] = 255
    Image.fromarray(image).save(tmp_path / "wide.png")
    square = load_image(str(tmp_path / "wide.png"), 40, 40)
    assert (square == (200, 100, 50)).all()
    assert load_image(str(tmp_path / "wide.png"), 8, 24).shape == (8, 24, 3)


def test_reduction_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    small = load_image(str(tmp_path / "stripes.png"), 8, 8).astype(int)
    assert abs(small - 127).max() < 16


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    upright = np.zeros((32, 32, 3), np.uint8)
    upright[:16, :16], upright[:16, 16:], upright[16:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(upright)
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert (load_image(str(tmp_path / "a.png"), 32, 32) == upright).all()


def _rgba() -> Image.Image:
    image = Image.new("RGBA", (16, 16), (10, 20, 30, 255))
    image.paste((200, 0, 0, 0), (0, 0, 8, 16))
    return image


def _transparent_palette() -> Image.Image:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([255, 0, 0, 10, 20, 30])
    image.paste(0, (0, 0, 8, 16))
    image.info["transparency"] = 0
    return image


def _deep_grey() -> Image.Image:
    grey = np.full((16, 16), 0x2040, np.uint16)
    grey[:, :8] = 0xFFFF
    return Image.fromarray(grey)


@pytest.mark.parametrize(
    ("image", "image_format", "left", "right"),
    [
        (_rgba(), "PNG", (255, 255, 255), (10, 20, 30)),
        (_rgba(), "WEBP", (255, 255, 255), (10, 20, 30)),
        (_transparent_palette(), "PNG", (255, 255, 255), (10, 20, 30)),
        (_rgba().convert("LA"), "PNG", (255, 255, 255), (18, 18, 18)),
        (_deep_grey(), "PNG", (255, 255, 255), (32, 32, 32)),
        (Image.new("L", (16, 16), 77), "PNG", (77, 77, 77), (77, 77, 77)),
        (Image.new("1", (16, 16), 1), "PNG", (255, 255, 255), (255, 255, 255)),
        (Image.new("RGB", (16, 16), (200, 60, 30)).convert("CMYK"), "JPEG", (200, 60, 30), (200, 60, 30)),
    ],
    ids=["alpha", "alpha webp", "palette", "grey alpha", "16 bit", "grey", "1 bit", "cmyk"],
)
def test_every_mode_becomes_rgb(tmp_path, image, image_format, left, right):
    options = {"lossless": True} if image_format == "WEBP" else {}
    (tmp_path / "a").write_bytes(encoded(image, image_format, **options))
    loaded = load_image(str(tmp_path / "a"), 16, 16).astype(int)
    assert loaded.shape == (16, 16, 3)
    assert abs(loaded[8, 2] - left).max() <= 2
    assert abs(loaded[8, 13] - right).max() <= 2


def _frames() -> list[Image.Image]:
    return [Image.fromarray(pixels(16, 16, seed)) for seed in range(3)]


JPEG = encoded(Image.fromarray(pixels(64, 64)), "JPEG")
THUMBNAILED = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", 2 + 6 + len(JPEG)) + b"thumb\0" + JPEG + JPEG[2:]
PNG = encoded(Image.fromarray(pixels(64, 64)), "PNG")
WEBP = encoded(Image.fromarray(pixels(64, 64)), "WEBP")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a PNG, JPEG or WEBP"),
        (b"hello", "not a PNG, JPEG or WEBP"),
        (encoded(Image.new("RGB", (8, 8)), "GIF"), "not a PNG, JPEG or WEBP"),
        (encoded(Image.new("RGB", (8, 8)), "TIFF"), "not a PNG, JPEG or WEBP"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 12, "broken PNG"),
        (png_header(60_000, 60_000), "too large"),
        (png_header(8_000, 8_001), "8000x8001"),
        (PNG[: len(PNG) // 2], "damaged PNG"),
        (PNG[:-20] + b"\0" + PNG[-19:], "damaged PNG"),
        (JPEG[: len(JPEG) // 2], "truncated JPEG"),
        (THUMBNAILED[:-200], "truncated JPEG"),
        (WEBP[: len(WEBP) // 2], "WEBP"),
        (encoded(_frames()[0], "WEBP", save_all=True, append_images=_frames()[1:]), "animated (3 frames)"),
        (encoded(_frames()[0], "PNG", save_all=True, append_images=_frames()[1:]), "animated (3 frames)"),
    ],
)
def test_bad_images_are_named_before_anything_is_decoded(tmp_path, monkeypatch, data, words):
    from PIL import ImageFile

    path = tmp_path / "bad"
    path.write_bytes(data)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for read in (check_image, lambda url: load_image(url, 64, 64)):
        with pytest.raises(ImageError) as caught:
            read(str(path))
        assert words in str(caught.value)
        assert str(path) in str(caught.value)


def test_whole_images_pass(tmp_path):
    mpo = encoded(_frames()[0], "MPO", save_all=True, append_images=_frames()[1:])
    for data in (PNG, JPEG, WEBP, THUMBNAILED, JPEG + b"trailing", mpo):
        (tmp_path / "a").write_bytes(data)
        check_image(str(tmp_path / "a"))
        assert load_image(str(tmp_path / "a"), 16, 16).shape == (16, 16, 3)


def test_damage_inside_the_pixels_is_found_by_validate(tmp_path):
    (tmp_path / "a.png").write_bytes(png_header(64, 64))
    for read in (check_image, lambda url: load_image(url, 64, 64)):
        with pytest.raises(ImageError, match="damaged"):
            read(str(tmp_path / "a.png"))


def test_too_many_bytes_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("ti2v_dist.images.MAX_IMAGE_BYTES", 1000)
    (tmp_path / "a.png").write_bytes(PNG)
    with pytest.raises(ImageError, match="more than the allowed 1,000 bytes"):
        check_image(str(tmp_path / "a.png"))


@pytest.mark.parametrize("name", ["none.png", ".", "a\0b.png", "/dev/zero"])
def test_what_is_no_file_is_an_image_error(tmp_path, name):
    with pytest.raises(ImageError):
        check_image(str(tmp_path / name))
