"""The page in Chromium without a window: drop, draw, keys, paste; the same pixels and logits as `predict`."""

from __future__ import annotations

import contextlib
import io
import json
import shutil

import browser
import numpy as np
import pytest
from deploy.test_web import images_for, pictures
from packed_networks import Network
from PIL import Image

from binwrn_jax.data.images import read_images
from binwrn_jax.deploy import web
from binwrn_jax.deploy.numpy_runtime import open_numpy
from binwrn_jax.deploy.packed import PackedModel
from binwrn_jax.deploy.quantize import quantize
from binwrn_jax.evaluation import probabilities

pytest.importorskip("ziglang")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not browser.find_browser(), reason="there is no Chromium: apt-get install chromium"),
]


def colour_model() -> PackedModel:
    network = Network(np.random.default_rng(2), (32, 32, 3), classes=7)
    x = network.conv(network.affine("image"), 16)
    return network.finish(network.add(x, network.conv(network.affine(x), 16)))


def grey_model(side: int) -> PackedModel:
    network = Network(np.random.default_rng(2), (side, side, 1), classes=10)
    x = network.conv(network.affine("image"), 16, stride=(2, 2))
    return network.finish(x, dataset="mnist" if side == 28 else "digits")


def integer_model() -> PackedModel:
    packed = colour_model()
    return quantize(packed, images_for(packed, 16))


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as found:
        yield found


@pytest.fixture(scope="module")
def addresses(tmp_path_factory):
    """Where the pages are served, and the folders, by name."""
    found = {}
    with contextlib.ExitStack() as stack:
        for name, packed in {
            "colour": colour_model(),
            "grey": grey_model(8),
            "mnist": grey_model(28),
            "int8": integer_model(),
        }.items():
            folder = tmp_path_factory.mktemp(name)
            web.write_web(packed, folder, examples=images_for(packed, 3))
            found[name] = (stack.enter_context(browser.serve(folder)), folder)
        yield found


def open_page(chromium, url, **how):
    page = chromium.page(**how)
    page.open(url)
    page.wait("document.body.dataset.ready === 'yes'")
    return page


def seen(page):
    """The pixels that the page says the network has seen, and its answer: names and shares in percent."""
    pixels = page.run(
        "(() => { const c = document.getElementById('seen'); return [c.height, c.width, "
        "[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]] })()"
    )
    image = np.array(pixels[2], np.uint8).reshape(pixels[0], pixels[1], 4)[..., :3]
    rows = page.run(
        "[...document.querySelectorAll('#classes li')].map((r) => [...r.children].map((c) => c.textContent))"
    )
    return image, [(name, float(share.removesuffix(" %"))) for name, share in rows]


def check_answer(folder, image, rows):
    """The answer is that of the definition for these pixels."""
    predictor = open_numpy(folder / web.MODEL)
    channels = predictor.description["image_shape"][2]
    shares = probabilities(predictor(image[None, ..., :channels]), predictor.description)[0]
    names = predictor.description["class_names"]
    order = np.argsort(-shares, kind="stable")[:5]
    assert [name for name, _ in rows] == [names[i] for i in order]
    np.testing.assert_allclose([share for _, share in rows], 100 * shares[order], atol=0.051)


def wait_for_answer(page, before):
    page.wait(f"![null, '', {json.dumps(before)}].includes(document.getElementById('spoken').textContent)")


def jpegs(folder):
    """Photographs as cameras write them: subsampled colours, grey, turned by EXIF."""
    y, x = np.mgrid[:211, :150]
    noise = np.random.default_rng(3).integers(0, 40, (211, 150, 3))
    smooth = np.stack([y + x, 200 * np.sin(x / 20) ** 2, 215 - y], -1).clip(0, 215) + noise
    image = Image.fromarray(smooth.astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "photo.jpg", quality=85)
    image.save(folder / "turned.jpg", quality=92, exif=exif)
    image.convert("L").save(folder / "grey.jpg")
    image.save(folder / "progressive.jpg", progressive=True, subsampling=0)
    return [folder / f"{name}.jpg" for name in ("photo", "turned", "grey", "progressive")]


@pytest.mark.parametrize("name", ["colour", "grey"])
def test_dropped_pictures_give_what_predict_gives(chromium, addresses, tmp_path, name):
    url, folder = addresses[name]
    page = open_page(chromium, url)
    shape = tuple(open_numpy(folder / web.MODEL).description["image_shape"])
    for path in [*list(pictures(tmp_path).values())[:14], *jpegs(tmp_path)]:
        before = page.run("document.getElementById('spoken').textContent = ''")
        page.drop(path)
        wait_for_answer(page, before)
        image, rows = seen(page)
        ((_, reference),) = read_images(path, shape)
        np.testing.assert_array_equal(image[..., : shape[2]], reference, err_msg=str(path))
        check_answer(folder, reference, rows)
    assert not page.problems and all(request.startswith((url, "data:", "blob:")) for request in page.requests)


@pytest.mark.parametrize("name", ["colour", "int8"])
def test_the_logits_in_the_browser_are_those_of_python(chromium, addresses, name):
    url, folder = addresses[name]
    page = open_page(chromium, url)
    images = images_for(colour_model(), 4)
    logits = page.run(
        "(async () => { const { load } = await import('/binwrn/binwrn.js');"
        "const model = await load('/model.safetensors');"
        f"return [model.kernel, ...model.logits(Uint8Array.from({images.ravel().tolist()}))] }})()"
    )
    reference = open_numpy(folder / web.MODEL)(images)
    assert logits[0] == "wasm"
    found = np.reshape(logits[1:], (4, -1))
    if name == "int8":
        np.testing.assert_array_equal(found, reference)
    np.testing.assert_allclose(found, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


def test_the_page_loads_few_bytes(chromium, addresses):
    url, folder = addresses["colour"]
    page = open_page(chromium, url)
    text = page.run("document.getElementById('facts').textContent")
    requested = {
        request.removeprefix(url) or "index.html" for request in page.requests if request.startswith(url)
    }
    requested |= {"binwrn/images.js", "binwrn/png.js", "drawing.js", web.PROGRAM}  # asked for by the worker
    size = sum((folder / name).stat().st_size for name in requested)
    assert f"loaded in all{size / 1000:.0f} kB" in text
    assert size <= (folder / web.MODEL).stat().st_size + 120_000


@pytest.mark.parametrize("name", ["grey", "mnist"])
def test_drawing_with_the_mouse_and_by_keyboard(chromium, addresses, name):
    url, folder = addresses[name]
    page = open_page(chromium, url)
    left, top, size = page.run(
        "((box) => [box.left, box.top, box.width])(document.getElementById('pad').getBoundingClientRect())"
    )
    page.drag([(left + size * (0.3 + 0.02 * i), top + size * (0.2 + 0.03 * i)) for i in range(20)])
    wait_for_answer(page, "")
    drawn, rows = seen(page)
    assert drawn.max() > 200 and drawn.min() == 0
    check_answer(folder, drawn, rows)
    if name == "mnist":  # its ink is 20 of 28 pixels high
        assert 19 <= (drawn[..., 0].max(1) > 30).sum() <= 22
    page.run("document.getElementById('clear').focus()")
    page.press("Enter")
    assert page.run("document.activeElement.id") == "pad"
    page.run("document.getElementById('spoken').textContent = ''")
    page.press(*["ArrowUp"] * 6, " ", *["ArrowDown"] * 12)
    assert page.run("document.getElementById('spoken').textContent") == "Pen down"
    page.press(" ")
    wait_for_answer(page, "Pen up")
    page.wait("document.getElementById('spoken').textContent.includes('%')")
    stroke, rows = seen(page)
    check_answer(folder, stroke, rows)
    assert stroke.max() > 100 and (stroke != drawn).any()
    assert not page.problems


def test_every_control_is_reached_by_keyboard_and_has_a_name(chromium, addresses):
    page = open_page(chromium, addresses["grey"][0])
    reached = []
    for _ in range(30):
        page.press("Tab")
        reached.append(
            page.run("((a) => a.id || a.getAttribute('aria-label') || a.className)(document.activeElement)")
        )
        if reached.count(reached[0]) > 1:
            break
    order = [
        "skip",
        "pad",
        "clear",
        "file",
        "camera",
        "Picture 1 of the test set",
        "Picture 3 of the test set",
    ]
    assert [reached.index(name) for name in order] == sorted(reached.index(name) for name in order)
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    for node in tree:
        if not node["ignored"] and node["role"]["value"] in (
            "button",
            "link",
            "checkbox",
            "image",
            "application",
        ):
            assert node["name"]["value"], node
    live = [n for n in tree if n["role"]["value"] in ("status", "alert")]
    assert len(live) == 2


def test_examples_are_the_pictures_of_the_test_set(chromium, addresses):
    url, folder = addresses["colour"]
    page = open_page(chromium, url)
    images = images_for(colour_model(), 3)
    for index in (2, 1):
        page.run("document.getElementById('spoken').textContent = ''")
        page.run(f"document.querySelectorAll('#examples button')[{index}].click()")
        wait_for_answer(page, "")
        image, rows = seen(page)
        np.testing.assert_array_equal(image, images[index])
        check_answer(folder, image, rows)


def test_a_pasted_picture_and_the_camera(chromium, addresses):
    url, folder = addresses["colour"]
    page = open_page(chromium, url)
    file = io.BytesIO()
    Image.fromarray(images_for(colour_model(), 1)[0]).save(file, "PNG")
    page.run("document.getElementById('spoken').textContent = ''")
    page.run(
        "(() => { const data = new DataTransfer(); data.items.add(new File([Uint8Array.from("
        f"{list(file.getvalue())})], 'x.png', {{ type: 'image/png' }}));"
        "window.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data })) })()"
    )
    wait_for_answer(page, "")
    image, rows = seen(page)
    np.testing.assert_array_equal(image, images_for(colour_model(), 1)[0])
    page.run("document.getElementById('spoken').textContent = ''")
    page.run("document.getElementById('camera').click()")
    wait_for_answer(page, "")
    image, rows = seen(page)
    check_answer(folder, image, rows)
    page.run("document.getElementById('camera').click()")
    assert page.run("document.getElementById('camera').getAttribute('aria-pressed')") == "false"
    assert not page.problems


def test_a_missing_picture_or_model_is_reported(chromium, addresses, tmp_path):
    url, folder = addresses["colour"]
    page = open_page(chromium, url)
    (tmp_path / "notes.txt").write_text("no picture")
    page.drop(tmp_path / "notes.txt")
    page.wait("document.getElementById('error').textContent.includes('no picture that can be read')")
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    content = bytearray((damaged / web.MODEL).read_bytes())
    content[-5] ^= 1
    (damaged / web.MODEL).write_bytes(content)
    with browser.serve(damaged) as address:
        broken = chromium.page()
        broken.open(address)
        broken.wait("document.getElementById('error').textContent.includes('checksum')")


@pytest.mark.parametrize("width", [320, 390, 700, 1280])
@pytest.mark.parametrize("name", ["colour", "grey"])
def test_nothing_is_wider_than_the_window(chromium, addresses, name, width):
    page = open_page(chromium, addresses[name][0], width=width, height=800)
    assert page.run("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(chromium, addresses, scheme):
    page = open_page(chromium, addresses["colour"][0], prefers_color_scheme=scheme)
    names = ("paper", "card", "ink", "soft", "accent", "bar")
    colours = page.run(
        "(() => { const s = getComputedStyle(document.documentElement); return "
        f"{json.dumps(names)}.map((n) => s.getPropertyValue('--' + n).trim()) }})()"
    )
    found = dict(zip(names, colours, strict=True))

    def brightness(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for text, behind in (
        ("ink", "paper"),
        ("ink", "card"),
        ("ink", "bar"),
        ("soft", "paper"),
        ("accent", "paper"),
        ("paper", "accent"),
    ):
        low, high = sorted(brightness(found[name]) for name in (text, behind))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, behind)
