"""The trace as text and as a picture."""

from itertools import pairwise
from xml.etree import ElementTree

from iostreamsrv.testing import Faults, Simulation
from iostreamsrv.testing.simulation.timeline import LABELS_APART, LEFT, LONGEST_NAME, MOST, svg
from tests.support.simulations import a_day_at_work

SVG = "{http://www.w3.org/2000/svg}"
CLIENT, SERVER = "10.2.0.1:32768", "10.1.0.1:7000"


def drawn(entries: list[tuple[float, str, str | int]]) -> ElementTree.Element:
    return ElementTree.fromstring(svg(entries))


def titled(picture: ElementTree.Element) -> list[tuple[str, ElementTree.Element]]:
    """Each mark, with what the mouse over it shows."""
    return [(title.text or "", each) for each in picture if (title := each.find(f"{SVG}title")) is not None]


def marks(picture: ElementTree.Element) -> dict[str, ElementTree.Element]:
    """The same, of marks that show different things."""
    return dict(titled(picture))


def texts(picture: ElementTree.Element, kind: str) -> list[tuple[str | None, float]]:
    """Texts of a class, and where they are."""
    return [(each.text, float(each.get("x", ""))) for each in picture.iter(f"{SVG}text") if each.get("class") == kind]


def lanes(picture: ElementTree.Element) -> list[str | None]:
    return [each.text for each in picture.iter(f"{SVG}text") if each.get("class") == "name"]


def test_both_directions_of_a_connection_share_a_lane_and_lie_on_its_two_sides() -> None:
    picture = drawn([(0.1, f"{CLIENT}>{SERVER}", 6), (0.2, f"{SERVER}>{CLIENT}", 6), (0.3, "process", "stopped")])
    assert lanes(picture) == [f"{SERVER} - {CLIENT}", "process"]
    there, back, words = marks(picture).values()
    assert there.get("y1") == back.get("y1") != words.get("cy")
    middle = float(there.get("y1", ""))
    assert sorted([float(there.get("y2", "")) > middle, float(back.get("y2", "")) > middle]) == [False, True]


def test_time_goes_to_the_right_and_an_hour_takes_no_hundred_times_the_place_of_a_millisecond() -> None:
    times = [0.0, 0.001, 0.002, 3600.0, 3600.0]
    picture = drawn([(time, "process", f"{number}") for number, time in enumerate(times)])
    places = [float(each.get("cx", "")) for _, each in titled(picture)]
    assert places == sorted(places)
    assert places[0] >= LEFT
    assert places[3] == places[4]
    assert 0 < places[3] - places[2] < 10 * (places[2] - places[1])


def test_a_fault_is_a_line_through_all_lanes_and_words_are_escaped() -> None:
    picture = drawn([(1.0, "<a>", "says <b> & leaves"), (2.0, "process", "fault 1: stop")])
    assert "1.000000 <a>: says <b> & leaves" in marks(picture)
    assert marks(picture)["2.000000 process: fault 1: stop"].get("class") == "fault"
    assert [each.get("class") for each in picture.iter(f"{SVG}line")].count("strike") == 1


def test_what_lies_on_one_spot_is_all_shown_by_the_mouse_and_what_a_segment_brings_in_words() -> None:
    entries: list[tuple[float, str, str | int]] = [(1.0, f"{CLIENT}>{SERVER}", 6), (1.0, f"{SERVER}>{CLIENT}", "close")]
    lines = [f"1.000000 {CLIENT}>{SERVER}: 6 bytes arrive", f"1.000000 {SERVER}>{CLIENT}: close"]
    assert [title.splitlines() for title, _ in titled(drawn(entries))] == [lines, lines]


def test_the_first_and_the_last_instant_have_their_time_and_no_two_times_overlap() -> None:
    for count in 1, 2, 5, 50:
        times = [*(number / 10 for number in range(count)), 3600.0]
        labels = texts(drawn([(time, "process", "word") for time in times]), "middle")
        assert (labels[0][0], labels[-1][0]) == ("0.0000 s", "3600.0000 s")
        assert all(right - left >= LABELS_APART for (_, left), (_, right) in pairwise(labels[:-1]))
        assert labels[-1][1] - labels[-2][1] > LABELS_APART or len(labels) == 2


def test_faults_are_named_where_there_is_room() -> None:
    picture = drawn([(number / 10, "process", f"fault {number}: kick") for number in range(1, 30)])
    names = texts(picture, "strikes")
    assert names[0][0] == "fault 1: kick"
    assert 1 < len(names) < 29
    assert all(right - left >= LABELS_APART for (_, left), (_, right) in pairwise(names))


def test_a_name_that_is_too_long_for_its_place_is_shortened_in_the_middle() -> None:
    picture = drawn([(1.0, f"/run/{'long/' * 30}socket", "listens")])
    ((name, _),) = texts(picture, "name")
    assert name is not None
    assert len(name) == LONGEST_NAME
    assert name.startswith("/run/long/")
    assert name.endswith("/socket")


def test_a_long_trace_is_drawn_from_its_end() -> None:
    picture = drawn([(float(number), "process", f"{number}") for number in range(MOST + 5)])
    assert len(marks(picture)) == MOST
    assert list(marks(picture))[-1].endswith(f": {MOST + 4}")


def test_an_empty_trace_is_an_empty_picture() -> None:
    assert marks(drawn([])) == {}


def test_a_run_counts_its_time_from_its_own_beginning_and_does_the_same_when_it_is_repeated() -> None:
    sim = Simulation(3, Faults(delay=(0, 0.2), rst=0.02))
    sim.run(a_day_at_work)
    text, picture = str(sim.trace), sim.trace.svg()
    assert text.splitlines()[0].split()[0] == "0.000000"
    assert any(line.endswith(" bytes arrive") for line in text.splitlines())
    assert len(marks(ElementTree.fromstring(picture))) <= MOST
    sim.run(a_day_at_work)
    assert (str(sim.trace), sim.trace.svg()) == (text, picture)
