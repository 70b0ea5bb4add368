"""Whatever is sent, the answer is a 4xx with a reason, and memory stays (cases 30 to 36 of the failure list)."""

from __future__ import annotations

import base64
import gzip
import http.client
import io
import json
import random
import re
import socket
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving_process import Running

EDITS = "/openai/v1/images/edits"
MB = 1_000_000


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_of(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG whose header says what it likes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


RED = Image.new("RGB", (64, 48), (200, 30, 30))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8))
HTML = b"<html><script>alert(1)</script></html>"

GOOD = {
    "one pixel": saved(Image.new("RGB", (1, 1)), "PNG"),
    "palette with transparency": saved(RED.convert("P"), "PNG", transparency=0),
    "16-bit grey": saved(Image.fromarray(np.full((20, 20), 40_000, np.uint16)), "PNG"),
    "CMYK": saved(RED.convert("CMYK"), "JPEG"),
    "animated PNG": saved(RED, "PNG", save_all=True, append_images=[NOISE.resize((64, 48))]),
    "JPEG with HTML behind it": saved(RED, "JPEG") + HTML,
    "very long and thin": saved(Image.new("RGB", (4000, 2)), "PNG"),
}
BAD = {
    "0 by 0": (png_of(0, 0), 422),
    "65535 by 65535": (png_of(65_535, 65_535), 413),
    "a bomb: 20000 by 20000 of nothing": (png_of(20_000, 20_000, bytes(3_000_000)), 413),
    "truncated PNG": (saved(NOISE, "PNG")[:3000], 422),
    "truncated JPEG": (saved(NOISE, "JPEG")[:400], 422),
    "GIF": (saved(RED, "GIF"), 422),
    "TIFF": (saved(RED, "TIFF"), 422),
    "HTML": (HTML, 422),
    "nothing": (b"", 422),
    "a PNG's text that unpacks to 100 MB": (
        saved(RED, "PNG")[:33]
        + (lambda data: struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data)))(
            b"x\0\0" + zlib.compress(bytes(100_000_000))
        )
        + saved(RED, "PNG")[33:],
        422,
    ),
    "FITS, gzipped": (gzip.compress(b"SIMPLE  =                    T" + bytes(5000)), 422),
}


@pytest.mark.parametrize("name", GOOD)
def test_odd_pictures_are_made_plain_ones(generator: Running, name: str) -> None:
    order = {"prompt": "red heart", "image": base64.b64encode(GOOD[name]).decode(), "steps": 2}
    status, body = generator.post(EDITS, order)
    assert status == 200, body


def test_a_picture_lying_on_its_side_is_stood_up(generator: Running) -> None:
    """EXIF orientation 6: what is drawn from it is what is drawn from the upright one."""
    upright = Image.new("RGB", (64, 64), (255, 255, 255))
    upright.paste((200, 30, 30), (0, 0, 64, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = saved(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    found = []
    for data in (saved(upright, "PNG"), lying):
        order = {"prompt": "x", "refine": False, "seed": 3, "strength": 0.3, "image": base64.b64encode(data).decode()}
        status, body = generator.post(EDITS, order)
        assert status == 200
        found.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"])))).astype(int))
    assert np.abs(found[0] - found[1]).max() <= 1


def test_bad_pictures_are_refused_before_they_cost_anything(generator: Running, scorer: Running) -> None:
    for running in (generator, scorer):
        prompts = {"prompt": "x"}
        running.post("/v1/models/" + running.model + ":predict", {"instances": [prompts]})
        before = running.rss()
        for name, (data, expected) in BAD.items():
            image = base64.b64encode(data).decode()
            for _ in range(3):
                status, body = running.post(
                    f"/v1/models/{running.model}:predict", {"instances": [{**prompts, "image": {"b64": image}}]}
                )
                assert status == expected, (name, body)
                assert body["error"]
        assert running.rss() - before < 50 * MB


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_refused_in_openai_s_shape(generator: Running, name: str) -> None:
    data, expected = BAD[name]
    status, body = generator.post(EDITS, {"prompt": "x", "image": base64.b64encode(data).decode()})
    assert status == expected
    assert body["error"]["param"] == "image"


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://127.0.0.1/x.png",
        "file:///etc/passwd",
        "ftp://x/y.png",
        "http://[::1]/x.png",
    ],
)
def test_addresses_are_never_fetched(generator: Running, address: str) -> None:
    status, body = generator.post(EDITS, {"prompt": "x", "image": address})
    assert (status, body["error"]["param"]) == (400, "image")
    assert "not fetched" in body["error"]["message"]


def raw(running: Running, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", running.http), timeout=60) as connection:
        connection.sendall(request)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
            if b"\r\n\r\n" in b"".join(parts) and b"connection: close" in b"".join(parts).lower():
                break
        return b"".join(parts)


def test_a_body_that_is_too_large_is_refused_from_its_header(generator: Running) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9999999999\r\n\r\n"
    answer = raw(generator, head % EDITS.encode())
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_say_how_large_it_is_is_cut_off(generator: Running) -> None:
    before = generator.rss()
    connection = http.client.HTTPConnection("127.0.0.1", generator.http, timeout=60)
    chunk = bytes(MB)
    try:
        connection.request("POST", EDITS, iter([chunk] * 60), {"Content-Type": "application/json"}, encode_chunked=True)
        status = connection.getresponse().status
    except (BrokenPipeError, ConnectionResetError):
        status = 413  # it hung up while we were still sending
    assert status == 413
    assert generator.rss() - before < 50 * MB


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate"])
def test_compressed_bodies_are_refused(generator: Running, encoding: str) -> None:
    body = gzip.compress(bytes(50 * MB))
    status, content = generator.call(EDITS, body, content_type="application/json", content_encoding=encoding)
    assert status == 415
    assert "Content-Encoding" in json.loads(content)["error"]["message"]


def test_any_words_are_drawn_or_refused_and_come_back_as_they_were(generator: Running) -> None:
    for text in ["naïve 🍌 مرحبا", "'; DROP TABLE users; --", "<|im_end|>", "a\0b", "\u202eevil", "x" * 4000]:
        status, body = generator.post(
            "/openai/v1/images/generations", {"prompt": text, "steps": 1, "seed": 1}, X_Request_Id="w"
        )
        assert status in (200, 422), (text, body)
        if status == 200 and not body["truncated"]:
            assert body["data"][0]["revised_prompt"] == text.strip()
    status, content = generator.call(
        "/openai/v1/images/generations", rb'{"prompt": "half \ud800 a pair"}', content_type="application/json"
    )
    assert status == 400, content


def test_pictures_and_words_stay_out_of_the_log(generator: Running) -> None:
    secret = "a very particular pangolin"
    image = base64.b64encode(saved(NOISE, "PNG")).decode()
    generator.post(EDITS, {"prompt": secret, "image": image, "steps": 1})
    generator.post(EDITS, {"prompt": secret, "image": image[:-9], "steps": 1})
    generator.post("/v1/models/vca-generator:predict", {"instances": [{"prompt": secret, "image": {"b64": "%"}}]})
    log = generator.log.read_text()
    assert secret not in log
    assert not re.search(r"[A-Za-z0-9+/]{200}", log)


@pytest.mark.parametrize("given", ["a b", "x" * 200, "a\tb", "<script>", "ü"])
def test_an_odd_request_id_is_replaced(generator: Running, given: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", generator.http, timeout=60)
    connection.putrequest("GET", "/v2/health/live")
    connection.putheader("X-Request-Id", given.encode())
    connection.endheaders()
    answer = connection.getresponse()
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])


def test_random_bytes_to_every_route_are_no_server_error(generator: Running, scorer: Running) -> None:
    lot = random.Random(1)
    for running in (generator, scorer):
        for path in (
            f"/v1/models/{running.model}:predict",
            f"/v2/models/{running.model}/infer",
            "/openai/v1/images/generations",
            EDITS,
            "/..%2f..%2fetc/passwd",
            "/v2/models/%00/infer",
        ):
            for kind in ("application/json", "multipart/form-data; boundary=x", "multipart/form-data", "x/y"):
                body = lot.randbytes(lot.randrange(200))
                status, _ = running.call(path, body, content_type=kind)
                assert 400 <= status < 500, (path, kind, status)
