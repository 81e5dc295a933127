"""Input images: every good picture becomes the right first frame, every other one is named before the run."""

import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.support.drawn import encoded, pixels, png_header
from tests.support.places import PICTURES
from ti2v_dist.inputs import images
from ti2v_dist.inputs.images import ImageError, check_image, load_image
from ti2v_dist.inputs.inspection import check_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.fromarray(pixels(64, 64)).save(tmp_path / "ok.png")
    return tmp_path


def test_an_image_of_the_output_size_comes_through_unchanged(folder: Path) -> None:
    assert (load_image(str(folder / "ok.png"), 64, 64) == pixels(64, 64)).all()
    info = check_image(str(folder / "ok.png"))
    assert (info.format, info.width, info.height, info.bytes) == ("PNG", 64, 64, (folder / "ok.png").stat().st_size)


def test_the_centre_is_cropped_to_the_outputs_shape(tmp_path: Path) -> None:
    image = np.zeros((40, 120, 3), np.uint8)
    image[:, 40:80] = (200, 100, 50)
    image[:, :40] = image[:, 80:] = 255
    Image.fromarray(image).save(tmp_path / "wide.png")
    square = load_image(str(tmp_path / "wide.png"), 40, 40)
    assert (square == (200, 100, 50)).all()
    assert load_image(str(tmp_path / "wide.png"), 8, 24).shape == (8, 24, 3)


def test_reduction_is_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    small = load_image(str(tmp_path / "stripes.png"), 8, 8).astype(int)
    assert abs(small - 127).max() < 16


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
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
def test_every_mode_becomes_rgb(
    tmp_path: Path, image: Image.Image, image_format: str, left: tuple[int, int, int], right: tuple[int, int, int]
) -> None:
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
def test_bad_images_are_named_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, words: str
) -> None:
    from PIL import ImageFile

    path = tmp_path / "bad"
    path.write_bytes(data)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for read in (check_image, lambda url: load_image(url, 64, 64)):
        with pytest.raises(ImageError) as caught:
            read(str(path))
        assert words in str(caught.value)
        assert str(path) in str(caught.value)


def test_whole_images_pass(tmp_path: Path) -> None:
    mpo = encoded(_frames()[0], "MPO", save_all=True, append_images=_frames()[1:])
    for data in (PNG, JPEG, WEBP, THUMBNAILED, JPEG + b"trailing", mpo):
        (tmp_path / "a").write_bytes(data)
        check_image(str(tmp_path / "a"))
        assert load_image(str(tmp_path / "a"), 16, 16).shape == (16, 16, 3)


def test_damage_inside_the_pixels_is_found_by_validate(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_header(64, 64))
    for read in (check_image, lambda url: load_image(url, 64, 64)):
        with pytest.raises(ImageError, match="damaged"):
            read(str(tmp_path / "a.png"))


def test_too_many_bytes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ti2v_dist.inputs.images.MAX_IMAGE_BYTES", 1000)
    (tmp_path / "a.png").write_bytes(PNG)
    with pytest.raises(ImageError, match="more than the allowed 1,000 bytes"):
        check_image(str(tmp_path / "a.png"))


@pytest.mark.parametrize("name", ["none.png", ".", "a\0b.png", "/dev/zero"])
def test_what_is_no_file_is_an_image_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError):
        check_image(str(tmp_path / name))


# The field's pictures, and their kinds


def upright() -> Image.Image:
    """A picture whose corners differ."""
    image = Image.new("RGB", (64, 64), (240, 240, 240))
    image.paste((255, 0, 0), (0, 0, 32, 32))
    image.paste((0, 0, 255), (0, 32, 32, 64))
    return image


def gamma_profile(gamma: float) -> bytes:
    """A grey profile."""

    def tag(name: bytes, body: bytes) -> tuple[bytes, bytes]:
        return name, body + b"\0" * (-len(body) % 4)

    curve = b"curv" + b"\0" * 4 + struct.pack(">IH", 1, round(gamma * 256))
    white = b"XYZ " + b"\0" * 4 + struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    text = b"desc" + b"\0" * 4 + struct.pack(">I", 2) + b"g\0" + b"\0" * 78
    tags = [tag(b"kTRC", curve), tag(b"wtpt", white), tag(b"desc", text), tag(b"cprt", b"text" + b"\0" * 5)]
    table, data, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, body in tags:
        table += name + struct.pack(">II", at + len(data), len(body))
        data += body
    size = 128 + len(table) + len(data)
    head = struct.pack(">I4xI4s4s4s12x4s", size, 0x02400000, b"mntr", b"GRAY", b"XYZ ", b"acsp").ljust(68, b"\0")
    return head + struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D).ljust(60, b"\0") + table + data


def cmyk_profile() -> bytes:
    """A printer's profile by a table of sixteen corners: ink takes its light away, and pure cyan is a dark red."""
    corners = []
    for c, m, y, k in np.ndindex(2, 2, 2, 2):
        level = 0 if k else round(255 * (1 - (m + y) / 2))
        corners += [100, 200, 160] if (c, m, y, k) == (1, 0, 0, 0) else [level if not c else level // 2, 128, 128]
    lut = (
        b"mft1" + b"\0" * 4 + struct.pack(">BBBx", 4, 3, 2) + struct.pack(">9i", *np.eye(3, dtype=int).ravel() * 65536)
    )
    lut += bytes(range(256)) * 4 + bytes(corners) + bytes(range(256)) * 3
    lut += b"\0" * (-len(lut) % 4)
    table = struct.pack(">I4sII", 1, b"A2B0", 128 + 16, len(lut))
    head = struct.pack(">I4xI4s4s4s12x4s", 144 + len(lut), 0x02400000, b"prtr", b"CMYK", b"Lab ", b"acsp")
    return head.ljust(68, b"\0") + struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D).ljust(60, b"\0") + table + lut


def both(path: Path, size: int = 64) -> np.ndarray:
    """What `validate` lets pass, as encode sees it."""
    check_image(str(path))
    return load_image(str(path), size, size).astype(int)


def test_bytes_behind_a_picture_change_nothing(tmp_path: Path) -> None:
    behind = (b"x", b"\xff\xda" + bytes(100), b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 40, b"\xff\xd8\xff\xe0")
    for image_format in ("PNG", "JPEG", "WEBP"):
        data = encoded(upright(), image_format)
        (tmp_path / "a").write_bytes(data)
        alone = both(tmp_path / "a")
        for more in behind:
            (tmp_path / "a").write_bytes(data + more)
            assert (both(tmp_path / "a") == alone).all(), (image_format, more[:12])
    assert both(PICTURES / "motion-photo.jpg").shape == (64, 64, 3)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}])
def test_a_jpeg_that_is_cut_anywhere_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    data = encoded(Image.fromarray(pixels(40, 40)), "JPEG", **options)
    for end in range(4, len(data) - 1, 97):
        (tmp_path / "a").write_bytes(data[:end])
        for read in (check_image, lambda url: load_image(url, 40, 40)):
            with pytest.raises(ImageError, match=r"truncated JPEG|broken PNG, JPEG"):
                read(str(tmp_path / "a"))
    motion = (PICTURES / "motion-photo.jpg").read_bytes()
    (tmp_path / "a").write_bytes(motion[: motion.index(b"\xff\xda") + 200])
    with pytest.raises(ImageError, match="truncated JPEG"):
        check_image(str(tmp_path / "a"))


def with_chunks(*chunks: tuple[bytes, bytes], image: Image.Image | None = None) -> bytes:
    data = encoded(image or upright(), "PNG")
    more = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return data[:33] + b"".join(more) + data[33:]


def test_texts_of_a_png_have_no_limit(tmp_path: Path) -> None:
    packed = zlib.compress(b"a workflow " * 500_000)
    texts = {
        "zTXt": (b"zTXt", b"workflow\0\0" + packed),
        "iTXt": (b"iTXt", b"workflow\0\1\0\0\0" + packed),
        "tEXt": (b"tEXt", b"workflow\0" + b"x" * 3_000_000),
        "xmp": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + packed),
    }
    for chunk in texts.values():
        (tmp_path / "a").write_bytes(with_chunks(*[chunk] * 20))
        assert (both(tmp_path / "a") == np.asarray(upright())).all()
    assert both(PICTURES / "png-2mb-ztxt.png").shape == (64, 64, 3)


def test_a_png_is_turned_by_its_texts_too(tmp_path: Path) -> None:
    xmp = (b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="3"/>')
    (tmp_path / "a").write_bytes(with_chunks(xmp))
    assert (both(tmp_path / "a") == np.asarray(upright())[::-1, ::-1]).all()


def test_a_bad_tag_does_not_keep_a_picture_from_being_turned(tmp_path: Path) -> None:
    path = PICTURES / "orientation6-bad-tag.jpg"
    stored = Image.open(path).convert("RGB")
    turned = stored.transpose(Image.Transpose.ROTATE_270)
    assert (both(path, stored.width) == np.asarray(turned)).all()
    assert (np.asarray(turned) != np.asarray(stored)).any()
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = exif.tobytes()
    for at in range(6, len(whole)):  # whatever is wrong in its tags, it is a picture
        for value in (0, 255):
            data = encoded(upright(), "JPEG", exif=whole[:at] + bytes([value]) + whole[at + 1 :])
            (tmp_path / "a").write_bytes(data)
            assert both(tmp_path / "a").shape == (64, 64, 3)


def test_display_p3_becomes_srgb(tmp_path: Path) -> None:
    profile = Image.open(PICTURES / "display-p3-red.png").info["icc_profile"]
    found = load_image(str(PICTURES / "display-p3-red.png"), 256, 256).astype(int)
    is_red = found[..., 1] < 128
    assert is_red.any()
    assert abs(found[is_red] - (255, 0, 0)).max() <= 4
    stored = Image.new("RGB", (16, 16), (234, 51, 35))  # sRGB's red in Display P3
    stored.putalpha(Image.new("L", (16, 16), 255))
    for image, image_format, options in (
        (stored, "PNG", {}),
        (stored.convert("RGB"), "JPEG", {"quality": 100, "subsampling": 0}),
        (stored, "WEBP", {"lossless": True}),
        (stored.convert("RGB").quantize(4), "PNG", {}),
    ):
        (tmp_path / "a").write_bytes(encoded(image, image_format, icc_profile=profile, **options))
        assert abs(both(tmp_path / "a", 16)[8, 8] - (255, 0, 0)).max() <= 4, (image.mode, image_format)


def test_grey_and_cmyk_profiles_are_applied(tmp_path: Path) -> None:
    dark = Image.new("L", (16, 16), 50)
    transparent = dark.convert("LA")
    for image, image_format in ((dark, "PNG"), (dark, "JPEG"), (transparent, "PNG")):
        (tmp_path / "a").write_bytes(encoded(image, image_format, icc_profile=gamma_profile(1.0)))
        assert abs(both(tmp_path / "a", 16) - 122).max() <= 3, image.mode  # linear 50/255 is 122 in sRGB
    cyan = encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=100, icc_profile=cmyk_profile())
    (tmp_path / "a").write_bytes(cyan)
    red, green, blue = both(tmp_path / "a", 16)[8, 8]
    assert red > 100 > 60 > max(green, blue)


def test_a_profile_that_is_srgb_broken_or_of_other_colours_changes_nothing(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    cube = Image.fromarray(pixels(16, 16))
    profiles = (
        srgb,
        b"",
        b"junk",
        srgb[:200],
        srgb[:100] + b"\xff" * 100 + srgb[200:],
        gamma_profile(1),
        cmyk_profile(),
    )
    for image in (
        cube,
        cube.convert("RGBA"),
        cube.convert("L"),
        cube.convert("P"),
        cube.convert("LA"),
        cube.convert("1"),
    ):
        (tmp_path / "plain").write_bytes(encoded(image, "PNG"))
        plain = both(tmp_path / "plain", 16)
        for profile in profiles:
            if image.mode in ("L", "LA", "1") and profile == gamma_profile(1):
                continue
            (tmp_path / "a").write_bytes(encoded(image, "PNG", icc_profile=profile))
            assert (both(tmp_path / "a", 16) == plain).all(), (image.mode, profile[:8])


def test_a_large_profile_is_applied_and_a_bomb_is_none(tmp_path: Path) -> None:
    p3 = Image.open(PICTURES / "display-p3-red.png").info["icc_profile"]
    for size, is_applied in ((3_000_000, True), (40_000_000, False)):
        large = p3 + bytes(size)
        chunk = (b"iCCP", b"p3\0\0" + zlib.compress(struct.pack(">I", len(large)) + large[4:]))
        (tmp_path / "a").write_bytes(with_chunks(chunk, image=Image.new("RGB", (64, 64), (234, 51, 35))))
        right = (255, 0, 0) if is_applied else (234, 51, 35)
        assert abs(both(tmp_path / "a") - right).max() <= 4


@pytest.mark.parametrize("size", [(1, 1), (20_000, 8), (8, 20_000)])
def test_odd_sizes_pass(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "a").write_bytes(encoded(Image.new("RGB", size, (10, 20, 30)), "PNG"))
    assert (both(tmp_path / "a") == (10, 20, 30)).all()


def test_large_pictures_are_decoded_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 5000)
    decode, at_once, most = images._decode, [0], [0]

    def counted(*arguments: Any) -> Image.Image:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.02)
        try:
            return decode(*arguments)
        finally:
            at_once[0] -= 1

    monkeypatch.setattr(images, "_decode", counted)
    for number in range(8):
        (tmp_path / str(number)).write_bytes(encoded(upright(), "PNG"))
    assert check_images(str(tmp_path / str(number)) for number in range(8)) == {}
    assert most == [1]
