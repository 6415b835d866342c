"""Numbers and containers as pictures: the right brightness, or a refusal that names type and range."""

from __future__ import annotations

import base64
import io
import struct
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image

from being_vl import BeingVLImageProcessor
from being_vl.quantizers.image_loading import UnreadableImageError, eight_bits, load_image

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
PICTURE = np.stack([RAMP, RAMP.T, 255 - RAMP], -1)


@pytest.fixture(scope="module")
def processor() -> BeingVLImageProcessor:
    return BeingVLImageProcessor(do_resize=False, do_center_crop=False)


def pixels(processor, image) -> np.ndarray:
    return processor(image, return_tensors="np")["pixel_values"][0]


@pytest.mark.parametrize(
    "form",
    [
        lambda p: p.astype(np.float64) / 255,
        lambda p: p.astype(np.float32),
        lambda p: p.astype(np.uint16) * 257,
        lambda p: p.astype(np.int32),
        lambda p: p.astype(np.int64) * 257,
        lambda p: torch.from_numpy(p).permute(2, 0, 1),
        lambda p: torch.from_numpy(p).permute(2, 0, 1).float() / 255,
        lambda p: np.ma.masked_array(p, mask=False),
    ],
)
def test_arrays_of_every_range_are_the_same_picture(processor, form):
    np.testing.assert_array_equal(pixels(processor, form(PICTURE)), pixels(processor, PICTURE))


def test_pictures_of_one_array_have_one_range(processor):
    """A picture that is nearly black beside a brighter one is nearly black, not nearly white."""
    batch = np.stack([PICTURE, np.minimum(PICTURE, 1), 0 * PICTURE])
    wanted = processor(batch, return_tensors="np")["pixel_values"]
    for form in (batch.astype(np.float32), torch.from_numpy(batch).float(), batch.astype(np.int32)):
        found = processor(form, return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(found, wanted)
    assert processor(batch / 255.0, do_rescale=False)["pixel_values"][0].max() == 0  # mean is 1


def test_a_grey_array_is_a_grey_picture(processor):
    wanted = pixels(processor, Image.fromarray(RAMP))
    for form in (
        RAMP,
        RAMP[..., None],
        torch.from_numpy(RAMP),
        RAMP / 255,
        RAMP.astype(np.uint16) * 257,
    ):
        np.testing.assert_array_equal(pixels(processor, form), wanted)


@pytest.mark.filterwarnings("error")
def test_half_precision_is_as_double(processor):
    halves = (PICTURE / 255).astype(np.float16)
    np.testing.assert_array_equal(pixels(processor, halves), pixels(processor, PICTURE))


@pytest.mark.parametrize(
    "empty", [np.zeros((0, 32, 3), np.uint8), np.zeros((32, 0, 3)), Image.new("RGB", (0, 5))]
)
def test_an_image_without_pixels_is_named(processor, empty):
    with pytest.raises(UnreadableImageError, match=r"shape \(.*\) has no pixels"):
        pixels(processor, empty)


def test_booleans_are_black_and_white(processor):
    mask = PICTURE > 100
    np.testing.assert_array_equal(pixels(processor, mask), pixels(processor, mask * np.uint8(255)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (PICTURE / 127.5 - 1, r"float64 values run from -1\.0 to 1\.0"),
        (PICTURE.astype(np.int32) - 5, "int32 values run from -5 to 250"),
        (PICTURE.astype(np.uint32) * 70_000, "uint32 values run from 0 to 17850000"),
        (np.where(PICTURE > 9, np.nan, 0.5), "values run from nan to nan"),
        (PICTURE.astype(complex), "type complex128"),
        (np.ma.masked_less(PICTURE, 9), "values are masked"),
    ],
)
def test_ranges_that_are_no_brightness_are_named(processor, values, message):
    with pytest.raises(UnreadableImageError, match=message):
        pixels(processor, values)


def test_pixel_values_pass_where_rescaling_is_off(processor):
    values = (PICTURE / 127.5 - 1).astype(np.float32)
    got = processor(values, do_rescale=False, do_normalize=False, return_tensors="np")
    np.testing.assert_array_equal(got["pixel_values"][0], values.transpose(2, 0, 1))


@pytest.mark.parametrize("scale", [1, 257])
def test_wide_tiffs(tmp_path, scale):
    for name, image in (
        ("int32", Image.fromarray(RAMP.astype(np.int32) * scale)),
        ("float", Image.fromarray(RAMP.astype(np.float32) * scale)),
    ):
        image.save(tmp_path / f"{name}.tiff")
        loaded = np.asarray(load_image(tmp_path / f"{name}.tiff"))
        np.testing.assert_array_equal(loaded[..., 0], RAMP)


def white_is_zero(path) -> None:
    """Set the tag PhotometricInterpretation of a little-endian TIFF to 0."""
    data = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, entry) == (262,):
            struct.pack_into("<H", data, entry + 8, 0)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("values", [RAMP, RAMP.astype(np.uint16) * 257])
def test_tiffs_whose_zero_is_white(tmp_path, values):
    path = tmp_path / "inverted.tiff"
    Image.fromarray(values).save(path)
    white_is_zero(path)
    np.testing.assert_array_equal(np.asarray(load_image(path))[..., 0], 255 - RAMP)


def png(array: np.ndarray = PICTURE) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_containers_of_a_picture_agree(processor, tmp_path):
    data = png()
    path = tmp_path / "a b#c.png"
    path.write_bytes(data)
    wrapped = "\n".join(textwrap.wrap(base64.b64encode(data).decode(), 76))
    for source in (
        data,
        bytearray(data),
        io.BytesIO(data),
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(path)},
        path.as_uri(),
        str(path),
        wrapped,
        f"data:image/png;base64,{wrapped}",
    ):
        np.testing.assert_array_equal(pixels(processor, source), pixels(processor, PICTURE))
        np.testing.assert_array_equal(pixels(processor, [source]), pixels(processor, PICTURE))


@pytest.mark.parametrize(
    "secret", ["A" * 5000, "data:image/png;base64," + "QUJD" * 2000, b"B" * 5000]
)
def test_messages_never_print_a_payload(processor, secret):
    for source in (secret, {"bytes": secret} if isinstance(secret, bytes) else [secret]):
        with pytest.raises(UnreadableImageError) as caught:
            processor(source)
        assert len(str(caught.value)) < 300
        assert "0x" not in str(caught.value)  # no address of an object either


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cats", r"cats \(no such file, read as base64\): not a readable image"),
        ("cats/1", "cats/1: not a readable image: No such file"),
        ("", "No such file"),
        (
            "data:image/png;base64,iVBOR",
            r"data:image/png;base64,iVBOR: not a readable image: Invalid base64",
        ),
        ("data:text/plain;base64,QUJD", "text/plain;base64,QUJD: .*format is not known"),
    ],
)
def test_a_wrong_name_is_not_blamed_as_a_damaged_picture(processor, source, message):
    with pytest.raises(UnreadableImageError, match=message):
        processor(source)


def test_a_data_uri_of_unknown_type_is_read(processor):
    uri = "data:application/octet-stream;base64," + base64.b64encode(png()).decode()
    np.testing.assert_array_equal(pixels(processor, uri), pixels(processor, PICTURE))


def test_a_row_without_a_picture_says_so(processor):
    with pytest.raises(UnreadableImageError, match="neither bytes nor path"):
        processor({"bytes": None, "path": None})


def test_the_table_keeps_shapes():
    assert eight_bits(np.zeros((0, 3))).shape == (0, 3)
    assert eight_bits(torch.ones(2, 3, dtype=torch.bfloat16)).tolist() == [[255] * 3] * 2
