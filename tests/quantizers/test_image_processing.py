"""The image processor: Chameleon's pixels, every mode of picture, hostile files, other sizes, the way back."""

import base64
import io
import json
import struct
import warnings
import zlib

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

from being_vl import BeingVLImageProcessor
from being_vl.quantizers.image_loading import UnreadableImageError, load_image, to_rgb

PLAIN = {"do_resize": False, "do_center_crop": False}


def noise(height, width, channels=3, seed=0, dtype=np.uint8):
    shape = (height, width, channels) if channels > 1 else (height, width)
    high = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, high, shape, dtype=dtype, endpoint=True)


def photo(height=40, width=60, seed=0):
    return PIL.Image.fromarray(noise(height, width, seed=seed))


def as_file(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(300, 500), (512, 512), (700, 530), (40, 90), (9, 40)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_equal_those_of_chameleon(size, channels):
    image = PIL.Image.fromarray(noise(*size, channels))
    ours = BeingVLImageProcessor()(image, return_tensors="pt")["pixel_values"]
    theirs = ChameleonImageProcessorPil()(image, return_tensors="pt")["pixel_values"]
    assert ours.dtype == torch.float32
    assert ours.shape == (1, 3, 512, 512)
    assert torch.equal(ours, theirs)


def test_defaults_equal_those_of_chameleon():
    ours, theirs = BeingVLImageProcessor().to_dict(), ChameleonImageProcessorPil().to_dict()
    for extra in ("max_image_pixels", "size_divisor", "do_pad"):
        del ours[extra]
    del ours["image_processor_type"], theirs["image_processor_type"]
    assert ours == theirs


def test_inputs_of_every_kind_agree(tmp_path):
    processor = BeingVLImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    image = photo()
    image.save(tmp_path / "photo.png")
    encoded = base64.b64encode(as_file(image, format="PNG")).decode()
    array = np.asarray(image)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    for other in (
        [image],
        array,
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        str(tmp_path / "photo.png"),
        tmp_path / "photo.png",
        f"data:image/png;base64,{encoded}",
        encoded,
        processor.fetch_images([str(tmp_path / "photo.png")]),
    ):
        result = processor(other, return_tensors="pt")["pixel_values"]
        assert torch.equal(result, expected)
    batch = processor([image, array, tmp_path / "photo.png"], return_tensors="np")["pixel_values"]
    assert isinstance(batch, np.ndarray)
    assert np.array_equal(batch, np.repeat(expected.numpy(), 3, axis=0))


@pytest.mark.parametrize(
    "given, error, said",
    [
        (lambda a: [a, None], TypeError, r"images\[1\] must be an image, .* got NoneType"),
        (lambda a: [[a], [a, 3]], TypeError, r"images\[1\]\[1\] must be an image, .* got int"),
        (lambda a: [[a], None, [a]], ValueError, r"images\[1\] must be a list of images, as images\[0\] is, got None"),
        (lambda a: [a, [a]], ValueError, r"images\[0\] must be a list of images, as images\[1\] is, got Image"),
        (lambda a: [[a], [[a]]], ValueError, r"images\[1\] must be a list of images, got a list of lists"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_named_by_its_place(given, error, said):
    with pytest.raises(error, match=said):
        BeingVLImageProcessor()(given(photo()))


def rgb(image):
    return np.asarray(to_rgb(image)).astype(int)


def test_transparency_lies_over_white():
    half = PIL.Image.new("RGBA", (2, 2), (255, 0, 0, 128))
    assert np.abs(rgb(half) - [255, 127, 127]).max() <= 1
    grey = PIL.Image.new("LA", (2, 2), (0, 0))
    assert (rgb(grey) == 255).all()
    for mode in ("La", "RGBa"):
        premultiplied = PIL.Image.new(mode[:-1] + "A", (2, 2)).convert(mode)
        assert (rgb(premultiplied) == 255).all()
    palette = PIL.Image.new("P", (2, 2), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert (rgb(palette) == [40, 50, 60]).all()
    for transparency in (1, b"\xff\x00"):
        stored = as_file(palette, format="PNG", transparency=transparency)
        assert (rgb(load_image(stored)) == 255).all()
    true_colour = as_file(
        PIL.Image.new("RGB", (2, 2), (1, 2, 3)), format="PNG", transparency=(1, 2, 3)
    )
    assert (rgb(load_image(true_colour)) == 255).all()


def test_simple_modes():
    assert (rgb(PIL.Image.new("1", (2, 2), 1)) == 255).all()
    assert (rgb(PIL.Image.new("L", (2, 2), 7)) == 7).all()
    assert (rgb(PIL.Image.new("CMYK", (2, 2), (0, 255, 255, 0))) == [255, 0, 0]).all()
    ycbcr = PIL.Image.new("RGB", (2, 2), (200, 30, 60)).convert("YCbCr")
    assert np.abs(rgb(ycbcr) - [200, 30, 60]).max() <= 2
    hsv = PIL.Image.new("RGB", (2, 2), (200, 30, 60)).convert("HSV")
    assert np.abs(rgb(hsv) - [200, 30, 60]).max() <= 3
    assert np.abs(rgb(PIL.Image.new("LAB", (2, 2), (255, 128, 128))) - 255).max() <= 3
    cmyk = load_image(as_file(PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0)), format="JPEG"))
    assert np.abs(np.asarray(cmyk).astype(int) - [254, 0, 0]).max() <= 6


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled(format):
    values = np.array([[0, 128, 129, 257], [40000, 65535, 65278, 256]], dtype=np.uint16)
    expected = np.rint(values / 257).astype(int)
    stored = as_file(PIL.Image.fromarray(values), format=format)
    assert (rgb(load_image(stored)) == expected[:, :, None]).all()
    array = np.repeat(values[None], 3, axis=0)
    processed = BeingVLImageProcessor(**PLAIN, do_rescale=False, do_normalize=False)(array)
    assert (processed["pixel_values"][0] == expected).all()


def test_wide_values_without_a_range():
    def of(values, dtype):
        return PIL.Image.fromarray(np.array([values], dtype=dtype))

    assert rgb(of([0, 200, 255], np.int32))[0, :, 0].tolist() == [0, 200, 255]
    assert rgb(of([0, 257, 65535], np.int32))[0, :, 0].tolist() == [0, 1, 255]
    assert rgb(of([0, 0.5, 1], np.float32))[0, :, 0].tolist() == [0, 128, 255]
    assert rgb(of([0, 20.4, 255], np.float32))[0, :, 0].tolist() == [0, 20, 255]
    for values in ([-1, 3], [0, 70000]):
        with pytest.raises(UnreadableImageError, match="no known range of brightness"):
            to_rgb(of(values, np.int32))
    with pytest.raises(UnreadableImageError, match="no known range"):
        to_rgb(of([0, np.nan], np.float32))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    image = PIL.Image.new("RGB", (32, 16))
    image.paste((255, 0, 0), (0, 0, 8, 8))  # a red corner
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    stored = as_file(image, format="PNG", exif=exif)
    upright = load_image(stored)
    assert upright.size == ((16, 32) if orientation >= 5 else (32, 16))
    red = np.argwhere(np.asarray(upright)[:, :, 0] > 200).mean(0) / np.array(upright.size[::-1])
    corners = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}
    corner = ("t" if red[0] < 0.5 else "b") + ("l" if red[1] < 0.5 else "r")
    assert corner == corners[orientation]
    # the processor does so for pictures that are already open, too
    processed = BeingVLImageProcessor(**PLAIN)(PIL.Image.open(io.BytesIO(stored)))
    assert processed["pixel_values"][0].shape[1:] == upright.size[::-1]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_give_their_first_frame(format):
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    stored = as_file(frames[0], format=format, save_all=True, append_images=frames[1:], **options)
    assert PIL.Image.open(io.BytesIO(stored)).n_frames == 3
    assert (rgb(load_image(stored)) == [255, 0, 0]).all()


def png(width, height, *, data=b""):
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [9000, 12000, 14000, 60000])
def test_bombs_are_refused_before_decoding(tmp_path, monkeypatch, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side))
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    processor = BeingVLImageProcessor()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        with pytest.raises(UnreadableImageError, match=r"bomb\.png: .*(limit of|exceeds limit)"):
            processor(path)
        if side == 12000:
            with PIL.Image.open(path) as image, pytest.raises(ValueError, match=r"bomb\.png"):
                processor(image)


def test_the_size_limit_can_be_set():
    stored = as_file(photo(10, 20), format="PNG")
    assert load_image(stored, max_pixels=200).size == (20, 10)
    with pytest.raises(UnreadableImageError, match="20×10 pixels, more than the limit of 199"):
        load_image(stored, max_pixels=199)
    with pytest.raises(UnreadableImageError, match="limit of 100"):
        BeingVLImageProcessor(max_image_pixels=100)(photo(10, 20))
    with pytest.raises(UnreadableImageError, match="limit of 100"):
        BeingVLImageProcessor()(base64.b64encode(stored).decode(), max_image_pixels=100)


def test_slivers_are_refused_before_they_are_stretched(tmp_path):
    path = tmp_path / "sliver.png"
    photo(1, 700).save(path)
    with pytest.raises(UnreadableImageError, match=r"sliver\.png: 700×1 pixels would be resized"):
        BeingVLImageProcessor()(path)
    with pytest.raises(UnreadableImageError, match="<array>: 1400×2 pixels"):
        BeingVLImageProcessor()(np.asarray(photo(2, 1400)))
    buckets = BeingVLImageProcessor(aspect_ratio_buckets=[[512, 512]])
    with pytest.raises(UnreadableImageError, match="would be resized"):
        buckets(path)
    assert BeingVLImageProcessor(**PLAIN)(path)["pixel_values"][0].shape == (3, 1, 700)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", png(8, 8)])
def test_unreadable_files_are_named(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    for read in (load_image, BeingVLImageProcessor()):
        with pytest.raises(UnreadableImageError, match=r"broken\.png: not a readable image"):
            read(path)


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path / "none.png", tmp_path, tmp_path / "abcd"):
        with pytest.raises(UnreadableImageError, match=f"{path.name}: not a readable image"):
            BeingVLImageProcessor()(str(path))


FORMATS = {"JPEG": "RGB", "PNG": "RGBA", "GIF": "P", "WEBP": "RGB", "TIFF": "CMYK", "BMP": "RGB"}


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_mutated_files_read_or_are_named(format, data):
    content = bytearray(as_file(photo(12, 10).convert(FORMATS[format]), format=format))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert load_image(bytes(content), name="pictures/7").mode == "RGB"
        except UnreadableImageError as error:
            assert "pictures/7" in str(error)


def test_without_a_crop_sides_are_multiples():
    processor = BeingVLImageProcessor(do_center_crop=False, size={"shortest_edge": 64})
    assert processor(photo(100, 163))["pixel_values"][0].shape == (3, 64, 112)
    assert processor(photo(100, 163), size_divisor=8)["pixel_values"][0].shape == (3, 64, 104)
    limited = processor(photo(20, 500), size={"shortest_edge": 64, "longest_edge": 128})
    assert limited["pixel_values"][0].shape == (3, 16, 128)
    within = processor(photo(100, 50), size={"max_height": 64, "max_width": 64})
    assert within["pixel_values"][0].shape == (3, 64, 32)
    exact = processor(photo(), size={"height": 60, "width": 44})
    assert exact["pixel_values"][0].shape == (3, 60, 44)


def test_padding():
    processor = BeingVLImageProcessor(**PLAIN, do_pad=True)
    small, large = photo(10, 40), photo(30, 20)
    batch = processor([small, large], return_tensors="pt")["pixel_values"]
    assert batch.shape == (2, 3, 32, 48)
    alone = BeingVLImageProcessor(**PLAIN)(small, return_tensors="pt")["pixel_values"]
    assert torch.equal(batch[:1, :, :10, :40], alone)
    assert not batch[0, :, 10:].any()
    fixed = processor([small, large], pad_size={"height": 64, "width": 48}, return_tensors="pt")
    assert fixed["pixel_values"].shape == (2, 3, 64, 48)


def test_aspect_ratio_buckets():
    buckets = [[64, 64], [48, 80], [80, 48], [32, 128]]
    processor = BeingVLImageProcessor(aspect_ratio_buckets=buckets)
    for (height, width), bucket in (
        ((100, 100), (64, 64)),
        ((100, 160), (48, 80)),
        ((200, 110), (80, 48)),
        ((10, 500), (32, 128)),
        ((50, 51), (64, 64)),
    ):
        assert processor(photo(height, width))["pixel_values"][0].shape == (3, *bucket)
    picture = PIL.Image.new("RGB", (96, 96), "red")  # the crop takes the middle
    picture.paste("blue", (0, 0, 96, 8))
    wide = BeingVLImageProcessor(aspect_ratio_buckets=[[48, 96]])
    assert wide.postprocess(wide(picture)["pixel_values"])[0].getpixel((48, 0)) == (255, 0, 0)
    with pytest.raises(ValueError, match="aspect_ratio_buckets must be"):
        BeingVLImageProcessor(aspect_ratio_buckets=[[0, 3]])(photo())


def test_different_sizes_are_named_when_a_tensor_is_asked_for():
    processor = BeingVLImageProcessor(**PLAIN)
    assert len(processor([photo(8, 8), photo(8, 16)])["pixel_values"]) == 2
    with pytest.raises(ValueError, match="got 8×8, 8×16"):
        processor([photo(8, 8), photo(8, 16)], return_tensors="pt")


@pytest.mark.parametrize("name", ["max_image_pixels", "size_divisor"])
def test_wrong_options_are_named(name):
    with pytest.raises(ValueError, match=f"{name} must be a positive integer, got -1"):
        BeingVLImageProcessor()(photo(), **{name: -1})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": {"shortest_edge": None}}, "size must have height and width, or .*, got none"),
        (
            {"crop_size": {"shortest_edge": 16}},
            "crop_size must have height and width, got shortest",
        ),
        ({"do_convert_rgb": {}}, "do_convert_rgb must be true or false, got a dict"),
    ],
)
def test_wrong_options_in_a_file_are_named(tmp_path, wrong, message):
    BeingVLImageProcessor().save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
    with pytest.raises(ValueError, match=f"the image processor's {message}"):
        BeingVLImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("options", [{}, {"image_mean": [0.5, 0.4, 0.3], "image_std": 0.25}])
def test_postprocess_is_the_inverse(options):
    processor = BeingVLImageProcessor(**PLAIN, **options)
    images = [photo(seed=seed) for seed in range(2)]
    pixel_values = processor(images, return_tensors="pt")["pixel_values"]
    for values in (pixel_values, pixel_values.numpy(), list(pixel_values)):
        back = processor.postprocess(values)
        assert [np.array_equal(a, b) for a, b in zip(back, images, strict=True)] == [True, True]
    assert np.array_equal(processor.postprocess(pixel_values[0])[0], images[0])
    assert processor.postprocess(torch.full((3, 2, 2), 9.0))[0].getpixel((0, 0)) == (255,) * 3
    with pytest.raises(ValueError, match=r"must be \(batch, 3, height, width\)"):
        processor.postprocess(torch.zeros(2, 2))


def test_saves_and_loads(tmp_path):
    processor = BeingVLImageProcessor(
        size={"shortest_edge": 64}, aspect_ratio_buckets=[[64, 32]], max_image_pixels=10**6
    )
    processor.save_pretrained(tmp_path)
    again = BeingVLImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert again(photo())["pixel_values"][0].shape == (3, 64, 32)
