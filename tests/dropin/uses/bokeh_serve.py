"""``bokeh serve`` with one process or two: pages, static files, and sessions over WebSockets."""

import concurrent.futures
import json
import signal
import sys
import tempfile
from pathlib import Path

from bokeh.client import pull_session
from checks import check, until
from programs import free_port, get, is_up, python

APPLICATION = """
from bokeh.io import curdoc
from bokeh.models import ColumnDataSource, Slider
from bokeh.plotting import figure
import os

source = ColumnDataSource(data={"x": list(range(100)), "y": [0] * 100}, name="line")
slider = Slider(start=0, end=100, value=1, name="slider", title=str(os.getpid()))
plot = figure()
plot.line("x", "y", source=source)

def changed(attribute, old, new):
    source.data = {"x": list(range(100)), "y": [new] * 100}

slider.on_change("value", changed)
curdoc().add_root(slider)
curdoc().add_root(plot)
curdoc().add_periodic_callback(lambda: setattr(slider, "tags", [*slider.tags, 1]), 100)
big = ColumnDataSource(data={"z": list(range(200_000))}, name="big")
curdoc().add_root(big)
"""


def main(processes: str) -> None:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        application = Path(folder, "application.py")
        application.write_text(APPLICATION)
        options = ["--port", str(port), "--address", "127.0.0.1", "--num-procs", processes]
        origin = ["--allow-websocket-origin", f"127.0.0.1:{port}"]
        with python("-m", "bokeh", "serve", str(application), *options, *origin) as server:
            with check("start"):
                until(lambda: is_up(f"{base}/application"))
            with check("the page"):
                status, page = get(f"{base}/application")
                assert status == 200 and b"bokeh" in page.lower()
            with check("/ redirects to the only application"):
                assert get(f"{base}/")[0] == 200
            with check("a page that is not there"):
                assert get(f"{base}/nothing")[0] == 404
            with check("BokehJS, 1 MB and more"):
                status, script = get(f"{base}/static/js/bokeh.min.js")
                assert status == 200 and len(script) > 500_000
            with check("50 requests at once"), concurrent.futures.ThreadPoolExecutor(10) as threads:
                assert {reply[0] for reply in threads.map(get, [f"{base}/static/js/bokeh.min.js"] * 50)} == {200}
            with check("a session: a change there and back"):
                session = pull_session(url=f"{base}/application")
                session.document.get_model_by_name("slider").value = 42

                def has_changed() -> bool:
                    session.pull()
                    return list(session.document.get_model_by_name("line").data["y"]) == [42] * 100

                until(has_changed)
            with check("a session: a periodic callback"):

                def has_been_called() -> bool:
                    session.pull()
                    return len(session.document.get_model_by_name("slider").tags) > 3

                until(has_been_called)
            with check("a session: a column of 200,000 numbers"):
                assert len(session.document.get_model_by_name("big").data["z"]) == 200_000
            with check("a session: a column of 200,000 numbers to the server"):
                session.document.get_model_by_name("big").data = {"z": list(range(200_000, 0, -1))}
                session.force_roundtrip()
            with check("a session closed"):
                session.close()
            with check("20 sessions"):
                sessions = [pull_session(url=f"{base}/application") for _ in range(20)]
                pids = {each.document.get_model_by_name("slider").title for each in sessions}
                assert pids <= set(map(str, workers(server.process.pid)))
                for each in sessions:
                    each.force_roundtrip()
                    each.close()
            with check("the metadata"):
                status, text = get(f"{base}/application/metadata")
                assert status == 200 and json.loads(text)["url"] == "/application"
            if processes != "1":
                with check("as many processes as were asked for"):
                    assert len(workers(server.process.pid)) == 1 + int(processes)
            with check("SIGTERM ends it"):
                server.end(signal.SIGTERM)


def workers(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


if __name__ == "__main__":
    main(sys.argv[1])
