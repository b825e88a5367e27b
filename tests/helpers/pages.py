"""Pages as a browser takes them: well formed, in need of nothing else, and no wider than their window."""

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """What a browser would make of it; a tag that does not match raises."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.texts, self.tables = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)
        if self.open and {"td", "th"} & {*self.open} and "title" not in self.open:
            self.tables[-1][-1][-1] += data

    @property
    def text(self):
        return " ".join(self.texts)


def assert_needs_nothing_else(page, path):
    """No script, no file and no address; every link leads to a place in the page."""
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "video", "base", "form"}
    assert not [
        name for name, _ in page.attributes if name.startswith("on") or name in ("src", "srcset", "xlink:href")
    ]
    (style,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    assert "url(" not in style and "@import" not in style
    # The name of SVG is an address that nobody asks for.
    assert set(re.findall(r"\w+://[^\s\"'<]+", text)) == {"http://www.w3.org/2000/svg"}
    ids = [value for name, value in page.attributes if name == "id"]
    targets = [value for name, value in page.attributes if name == "href"]
    assert len(ids) == len(set(ids)) and targets
    assert all(target.startswith("#") and target[1:] in ids for target in targets)


def assert_no_wider_than_its_window(path):
    """In a real browser, 360 and 1200 pixels wide, with everything folded and with everything open."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no chromium on PATH")
    # A frame is as narrow as it is told; a browser's own window is not.
    frame = html.escape(path.read_text(encoding="utf-8"))
    frames = "".join(f'<iframe width="{width}" height="640" srcdoc="{frame}"></iframe>' for width in (360, 1200))
    place = path.with_name("frames.html")
    place.write_text(
        f"""<body>{frames}
        <script>window.onload = () => {{ document.title = [...document.querySelectorAll('iframe')].map((frame) => {{
          const page = frame.contentDocument, root = page.documentElement, folded = root.scrollWidth;
          page.querySelectorAll('details').forEach((each) => {{ each.open = true; }});
          return [root.clientWidth, folded, root.scrollWidth].join(' '); }}).join('; '); }};</script></body>""",
        encoding="utf-8",
    )
    profile = path.with_name("profile")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom"]
    done = subprocess.run([chromium, *flags, place.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode or "<title>" not in done.stdout:
        pytest.skip(f"{chromium} does not run here: {done.stderr[-300:]}")
    found = re.search("<title>(.*?)</title>", done.stdout).group(1)
    widths = [[int(each) for each in part.split()] for part in found.split("; ")]
    assert len(widths) == 2 and all(340 <= part[0] <= 1200 for part in widths)
    for visible, *needed in widths:
        assert max(needed) <= visible, found
