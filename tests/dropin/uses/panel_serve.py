"""``panel serve`` with one process or two: pages, static files, a REST endpoint of its own, and sessions."""

import html
import signal
import sys
import tempfile
import time
from pathlib import Path

import panel.models  # noqa: F401  # the document's classes
from bokeh.client import pull_session
from checks import check, until
from programs import free_port, get, is_up, python

APPLICATION = """
import panel

number = panel.widgets.IntSlider(name="number", start=0, end=100, value=3)
upload = panel.widgets.FileInput()
text = panel.pane.Markdown(panel.bind(lambda value: f"It is {value}", number))
panel.Column(number, upload, text).servable()
"""


def main(processes: str) -> None:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "application.py").write_text(APPLICATION)
        Path(folder, "files").mkdir()
        Path(folder, "files", "large.bin").write_bytes(bytes(range(256)) * 80_000)
        options = ["--port", str(port), "--address", "127.0.0.1", "--num-procs", processes]
        origin = ["--allow-websocket-origin", f"127.0.0.1:{port}", "--static-dirs", "files=files"]
        with python("-m", "panel", "serve", "application.py", *options, *origin, folder=folder) as server:
            with check("start"):
                until(lambda: is_up(f"{base}/application"))
            with check("the page"):
                status, page = get(f"{base}/application")
                assert status == 200 and b"bokeh" in page.lower()
            with check("a static file of 20 MB"):
                status, data = get(f"{base}/files/large.bin")
                assert status == 200 and data == bytes(range(256)) * 80_000
            with check("a part of a static file"):
                status, data = get(f"{base}/files/large.bin", Range="bytes=1000-1009")
                assert status == 206 and data == (bytes(range(256)) * 8)[1000:1010]
            with check("panel's own script"):
                status, script = get(f"{base}/static/extensions/panel/panel.min.js")
                assert status == 200 and len(script) > 100_000
            with check("a page that is not there"):
                assert get(f"{base}/nothing")[0] == 404
            with check("a session: a change there and back"):
                session = pull_session(url=f"{base}/application")
                models = session.document.models
                next(model for model in models if getattr(model, "title", None) == "number").value = 77
                session.force_roundtrip()

                def has_changed() -> bool:
                    time.sleep(1)  # each pull sends the server what it replaces: no change of the server's may cross it
                    session.pull()
                    return any(
                        "It is 77" in html.unescape(str(getattr(it, "text", ""))) for it in session.document.models
                    )

                until(has_changed)
            with check("a session: 5 MB uploaded"):
                upload = next(model for model in session.document.models if type(model).__name__ == "FileInput")
                upload.set_from_json("value", "QUJD" * 1_250_000)  # as browsers do; programs cannot assign it
                upload.set_from_json("filename", "it.txt")
                session.force_roundtrip()
            with check("10 sessions"):
                for each in [pull_session(url=f"{base}/application") for _ in range(10)]:
                    each.force_roundtrip()
                    each.close()
                session.close()
            with check("SIGTERM ends it"):
                server.end(signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1])
