"""Names of files: whatever users call their pictures, two stay two on every system, as do their labels."""

import itertools
import os
import re
import unicodedata
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cv_pipeline.core import files as F

# letters whose case, form or width coincide, what Windows forbids, separators, dots
LETTERS = 'aAbB1._- :\n\r\t\\*?<>|"\u2028\u0085ßẞſsSkKK\u0130ıiIéÉe\u0301\u0308ﬁ👷\udce4\u200d.'
PART = st.text(st.sampled_from(LETTERS), max_size=12) | st.sampled_from(
    [
        "CON",
        "nul",
        "com1",
        "LPT9",
        "aux",
        "con",
        "..",
        ".",
        "x" * 300,
        "ü" * 140,
        "名" * 90,
        "Cafe\u0301",
        "Café",
    ]
)
NAME = st.builds(
    lambda stem, end: stem + end, PART, st.sampled_from([".jpg", ".JPG", ".png", ".jpeg", "", "."])
)
PATHS = st.lists(st.lists(NAME, min_size=1, max_size=3).map("/".join), max_size=12)

FORMS = ["NFC", "NFD", "NFKC", "NFKD"]
FOLDS = [str.casefold, str.lower, str.upper, lambda s: s.upper().lower(), lambda s: s]
SYSTEMS = [
    (lambda s, a=a, b=b, f=f: unicodedata.normalize(b, f(unicodedata.normalize(a, s))))
    for a, b, f in itertools.product(FORMS, FORMS, FOLDS)
]  # every way in which a system may take two names for one


def stem(name: str) -> str:
    return PurePosixPath(name).stem


def portable(name: str) -> bool:
    "Brute force, from Windows' own list and POSIX' limits."
    base = name.split(".")[0].rstrip(" ").upper()
    devices = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
        f"{d}{n}" for d in ("COM", "LPT") for n in "0123456789¹²³"
    }
    return (
        0 < len(name.encode("utf-8")) <= 255
        and not any(ord(c) < 32 or c in '<>:"/\\|?*' for c in name)
        and len(name.splitlines()) == 1
        and name[-1] not in ". "
        and name[0] not in ". "
        and base not in devices
    )


@settings(max_examples=400, deadline=None)
@given(PATHS)
@example(["cam_1/x.jpg", "cam/1_x.jpg", "cam/1/x.jpg"])
@example(["0001.jpg", "0001.png", "0001.jpeg"])
@example(["Stra\u00dfe.jpg", "STRASSE.jpg", "Cafe\u0301.png", "CAFÉ.jpg"])
@example(["K.jpg", "\u212a.jpg", "k.jpg"])
@pytest.mark.slow
def test_no_system_takes_two_pictures_or_two_label_files_for_one(paths):
    made = F.unique_names(paths)
    assert len(made) == len(paths) and all(portable(n) for n in made)
    assert all(portable(f"{stem(n)}.txt") for n in made)
    for fold in SYSTEMS:
        assert len({fold(stem(n)) for n in made}) == len(paths)


@given(PATHS)
@pytest.mark.slow
def test_a_name_that_needs_no_change_stays_as_it_is(paths):
    made, seen = F.unique_names(paths), []
    for path, name in zip(paths, made):
        flat = path.replace("/", "_")
        clear = not any(f(stem(flat)) == f(stem(s)) for s in seen for f in SYSTEMS)
        if "\udce4" not in flat and portable(flat) and portable(f"{stem(flat)}.txt") and clear:
            # hashed names are the only others; none of these letters makes one
            assert name == flat or any(F.name_key(stem(flat)) == F.name_key(stem(s)) for s in seen)
        seen.append(flat)


@given(PATHS, PATHS)
@pytest.mark.slow
def test_pictures_that_come_later_change_no_name(paths, more):
    first, both = F.unique_names(paths), F.unique_names(paths + more)
    natural = {F.name_key(stem(p.replace("/", "_"))) for p in more}
    for a, b in zip(first, both):
        assert a == b or F.name_key(stem(a)) in natural  # unless a later one is called like the hashed name


@given(PATHS)
def test_names_are_the_same_each_time_and_go_on_from_those_in_use(paths):
    first = F.unique_names(paths)
    assert first == F.unique_names(iter(paths))
    again = F.unique_names(paths, taken=first)
    assert not {F.name_key(stem(n)) for n in first} & {F.name_key(stem(n)) for n in again}


def test_one_suffix_for_all_and_hashes_of_what_is_given():
    a, b = F.unique_names(["a/1.jpg", "a/1.png"], suffix=".png")
    assert a == "a_1.png" and re.fullmatch(r"a_1-[0-9a-f]{8}\.png", b)
    assert F.unique_names(["x.jpg", "x.png"], ["c1", "c2"]) == F.unique_names(
        ["x.jpg", "x.png"], ["c3", "c2"]
    )
    assert F.unique_names(["x.jpg", "x.png"], ["c1", "c2"]) != F.unique_names(
        ["x.jpg", "x.png"], ["c1", "c3"]
    )


@settings(deadline=None)
@given(PATHS)
def test_the_file_system_here_takes_them_all(tmp_path_factory, paths):
    folder = tmp_path_factory.mktemp("names")
    for name in F.unique_names(paths):
        F.write_whole(folder / name, name)
        F.write_whole(folder / "labels" / f"{stem(name)}.txt", name)
    assert len(list(folder.glob("*.*")) + [p for p in folder.iterdir() if "." not in p.name]) >= len(paths)
    assert len(list(folder.glob("labels/*"))) == len(paths)


SOURCES = st.text(st.sampled_from(LETTERS + "/@"), max_size=40) | PART


@given(st.sets(SOURCES, max_size=8))
def test_sources_have_folders_of_their_own_whatever_they_are_called(sources):
    made = [F.safe_name(s) for s in sorted(sources)]
    changed = [n for n, s in zip(made, sorted(sources)) if n != s]
    assert len(set(made)) == len(made) and len({F.name_key(n) for n in changed}) == len(changed)
    assert all(portable(n) and "/" not in n for n in made)


def test_a_safe_name_does_not_differ_by_case_from_one_in_use():
    assert F.safe_name("cam", {"Cam"}) == "cam-2"


@pytest.mark.parametrize("name", ["ü" * 127, "名" * 85, "x" * 255])
def test_the_longest_names_can_be_written_whole(tmp_path, name):
    F.write_whole(tmp_path / name, b"1")
    F.write_whole(tmp_path / name, b"2")
    with F.draft_folder(tmp_path / name) as draft:
        assert draft.is_dir()
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"2"]


# copies


def test_a_copy_is_a_file_of_its_own(tmp_path):
    F.write_whole(tmp_path / "original", b"the user's own")
    os.symlink(tmp_path / "original", tmp_path / "shortcut")
    F.copy_file(tmp_path / "shortcut", tmp_path / "copy")
    (tmp_path / "copy").write_bytes(b"repaired by somebody")
    assert (tmp_path / "original").read_bytes() == b"the user's own"
    assert (tmp_path / "original").stat().st_nlink == 1 and not (tmp_path / "copy").is_symlink()


def test_the_bytes_are_copied_where_blocks_cannot_be_shared(tmp_path, monkeypatch):
    import fcntl

    def refused(*a):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "ioctl", refused)
    content = os.urandom(3 << 20)
    F.write_whole(tmp_path / "a", content)
    assert F.copy_file(tmp_path / "a", Path(tmp_path / "b")).read_bytes() == content
