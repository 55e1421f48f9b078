"""A sheet of pictures with titles, written as PNG, or for papers as SVG or PDF, whose titles stay text.

Axes: h w pixels.
"""

import base64
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageDraw

from segclip.data.own_pictures import save_own_png
from segclip.visualize import readable

GAP, TEXT = 10, 15  # pixels between pictures; height of text
FINE = 4  # times as fine as the sheet: a title that is drawn as a picture


@dataclass(frozen=True)
class Picture:
    """A picture of a sheet.

    Attributes:
        title: written above it.
        pixels: RGB uint8 (h,w,3), 0-255; those of one sheet have one size.
        colour: RGB of a swatch before the title; None: no swatch.
    """

    title: str
    pixels: UInt8[ndarray, "h w 3"]
    colour: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Sheet:
    """Pictures in rows.

    Attributes:
        rows: from the top, each from the left.
    """

    rows: Sequence[Sequence[Picture]]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        height, width = self.rows[0][0].pixels.shape[:2]
        return GAP + max(map(len, self.rows)) * (width + GAP), GAP + len(self.rows) * (height + 2 * TEXT + GAP)

    def placed(self) -> Iterator[tuple[Picture, int, int, int, int]]:
        """Each picture: left and top of its title, left and top of its pixels."""
        height, width = self.rows[0][0].pixels.shape[:2]
        for y, row in enumerate(self.rows):
            for x, picture in enumerate(row):
                left, top = GAP + x * (width + GAP), GAP + y * (height + 2 * TEXT + GAP)
                indent = TEXT + GAP // 2 if picture.colour else 0
                yield picture, left + indent, top, left, top + 2 * TEXT - TEXT // 2

    def title_of(self, picture: Picture) -> str:
        """The title, cut to the width of the picture."""
        text, font = readable(picture.title, 0, TEXT)
        room = picture.pixels.shape[1] - (TEXT + GAP // 2 if picture.colour else 0)
        while font.getlength(text) > room and len(text) > 1:
            text = f"{text[:-2]}…"
        return text


def draw(sheet: Sheet) -> Image.Image:
    """The sheet as a picture."""
    image = Image.new("RGB", sheet.size, "white")
    pen = ImageDraw.Draw(image)
    for picture, x, y, left, top in sheet.placed():
        if picture.colour:
            pen.rectangle((left, y, left + TEXT, y + TEXT), fill=picture.colour)
        text = sheet.title_of(picture)
        pen.text((x, y), text, fill="black", font=readable(text, 0, TEXT)[1])
        image.paste(Image.fromarray(picture.pixels), (left, top))
    return image


def to_png(sheet: Sheet) -> bytes:
    """A PNG that is known as this package's own."""
    buffer = io.BytesIO()
    save_own_png(draw(sheet), buffer)
    return buffer.getvalue()


def to_svg(sheet: Sheet) -> bytes:
    """An SVG: pictures as PNGs inside it, titles as text, swatches as rectangles."""
    width, height = sheet.size
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="{TEXT}">'
    ]
    for picture, x, y, left, top in sheet.placed():
        if picture.colour:
            fill = "#{:02x}{:02x}{:02x}".format(*picture.colour)
            parts.append(f'<rect x="{left}" y="{y}" width="{TEXT}" height="{TEXT}" fill="{fill}"/>')
        parts.append(f'<text x="{x}" y="{y + 0.85 * TEXT:g}">{escape(sheet.title_of(picture))}</text>')
        rows, columns = picture.pixels.shape[:2]
        data = base64.b64encode(_encode(Image.fromarray(picture.pixels))).decode()
        place = f'x="{left}" y="{top}" width="{columns}" height="{rows}"'
        parts.append(f'<image {place} href="data:image/png;base64,{data}"/>')
    return "\n".join([*parts, "</svg>\n"]).encode()


def to_pdf(sheet: Sheet) -> bytes:
    """A PDF of one page, a point a pixel: titles in Helvetica, or drawn where it lacks their letters (ISO 32000-1)."""
    width, height = sheet.size
    images: list[Image.Image] = []
    page: list[bytes] = []

    def place(image: Image.Image, left: int, top: int, columns: int, rows: int) -> None:
        page.append(f"q {columns} 0 0 {rows} {left} {height - top - rows} cm /I{len(images)} Do Q".encode())
        images.append(image)

    for picture, x, y, left, top in sheet.placed():
        if picture.colour:
            red, green, blue = (value / 255 for value in picture.colour)
            page.append(f"{red:.3f} {green:.3f} {blue:.3f} rg {left} {height - y - TEXT} {TEXT} {TEXT} re f".encode())
        text = sheet.title_of(picture)
        try:
            letters = text.encode("cp1252").replace(b"\\", rb"\\").replace(b"(", rb"\(").replace(b")", rb"\)")
            start = f"BT 0 g /F0 {TEXT} Tf {x} {height - y - 0.85 * TEXT:g} Td (".encode()
            page.append(start + letters + b") Tj ET")
        except UnicodeEncodeError:
            strip = _draw_title(text)
            place(strip, x, y, strip.width // FINE, strip.height // FINE)
        rows, columns = picture.pixels.shape[:2]
        place(Image.fromarray(picture.pixels), left, top, columns, rows)

    first = 6  # number of the first picture's object
    names = " ".join(f"/I{i} {first + i} 0 R" for i in range(len(images)))
    resources = f"<< /Font << /F0 5 0 R >> /XObject << {names} >> >>"
    box = f"/MediaBox [0 0 {width} {height}]"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R {box} /Resources {resources} /Contents 4 0 R >>".encode(),
        _stream("", b"\n".join(page)),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for image in images:
        kind = f"/Type /XObject /Subtype /Image /Width {image.width} /Height {image.height} "
        objects.append(_stream(kind + "/ColorSpace /DeviceRGB /BitsPerComponent 8", image.tobytes()))
    return _join(objects)


WRITERS: dict[str, Callable[[Sheet], bytes]] = {"png": to_png, "svg": to_svg, "pdf": to_pdf}


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _draw_title(text: str) -> Image.Image:
    text, font = readable(text, 0, FINE * TEXT)
    image = Image.new("RGB", (max(1, int(font.getlength(text))), FINE * TEXT * 5 // 4), "white")
    ImageDraw.Draw(image).text((0, 0), text, fill="black", font=font)
    return image


def _stream(entries: str, data: bytes) -> bytes:
    packed = zlib.compress(data)
    head = f"<< {entries} /Filter /FlateDecode /Length {len(packed)} >>\nstream\n"
    return head.encode() + packed + b"\nendstream"


def _join(objects: Sequence[bytes]) -> bytes:
    """The objects with their numbers from 1, and the table of where each starts."""
    file, starts = io.BytesIO(), []
    file.write(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    for number, one in enumerate(objects, 1):
        starts.append(file.tell())
        file.write(f"{number} 0 obj\n".encode() + one + b"\nendobj\n")
    table = file.tell()
    file.write(f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode())
    file.writelines(f"{start:010d} 00000 n \n".encode() for start in starts)
    file.write(f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n".encode())
    return file.getvalue()
