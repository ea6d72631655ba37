"""Transcripts in every form that upstream and others write; mistakes are named with their line."""

from __future__ import annotations

import errno
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mlx_vits.audio.files import read_speech, write_wav
from mlx_vits.checkpoints.base import find_base, load_content_encoder
from mlx_vits.errors import DataError, UserError
from mlx_vits.preprocessing.features import speech_features
from mlx_vits.preprocessing.prepare import PrepareOptions, prepare_voice
from mlx_vits.preprocessing.sources import Clip, find_audio, read_voice_source
from mlx_vits.preprocessing.transcripts import (
    LANGUAGES,
    Transcript,
    find_beside,
    find_transcripts,
    read_beside,
    read_transcripts,
    write_list,
)
from tests.support.goldens import SHARED
from tests.support.tiny import RATE
from tests.support.upstream_dataset import judge, read_rows

KATHLEEN = SHARED / "voices" / "kathleen"
# The tags of upstream's list files, and what they mean.
TAGS = {
    "zh": ("ZH", "zh"),
    "ja": ("JP", "jp", "JA", "ja"),
    "en": ("EN", "En", "en"),
    "ko": ("KO", "Ko", "ko"),
    "yue": ("YUE", "Yue", "yue"),
}
SAID = [("a.wav", "Hello, world."), ("b.wav", "Grüße: “eins”, 二; 3 | 4?"), ("c.wav", "Third.")]


def upstream_name(path: str) -> str:
    """Upstream's `clean_path`, then the last part; it runs where the separators are its own."""
    while path.endswith(("\\", "/")):
        path = path[:-1]
    return path.replace("\\", "/").strip(" '\n\"\u202a").rpartition("/")[2]


def read(path: Path, content: str | bytes) -> list[Transcript]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_transcripts(path)


def said(rows: list[Transcript]) -> list[tuple[str, str]]:
    return [(row.name, row.text) for row in rows]


def make_clips(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        write_wav(folder / name, np.zeros(320, np.int16), 32000)
    return folder


def clips_of(folder: Path, **options: Any) -> list[tuple[str, str]]:
    return [(clip.name, clip.text) for clip in read_voice_source(folder, 0, **options).clips]


def test_upstreams_list(tmp_path: Path) -> None:
    tags = [(code, tag) for code, tags in TAGS.items() for tag in tags]
    content = "".join(f"in/{i}.wav|speaker|{tag}| text {i} \n" for i, (_, tag) in enumerate(tags))
    rows = read(tmp_path / "x.list", content)
    assert said(rows) == [(f"{i}.wav", f"text {i}") for i in range(len(tags))]
    assert [row.language for row in rows] == [code for code, _ in tags]
    assert set(LANGUAGES.values()) == set(TAGS)
    assert rows[2].where == f"{tmp_path / 'x.list'}: line 3"


@pytest.mark.parametrize(
    "path",
    [
        "a.wav",
        "/data/me/a.wav",
        r"D:\GPT-SoVITS\output\slicer_opt\a.wav",
        r"D:\mixed/of\both/a.wav",
        '"C:\\a b\\a.wav"',
        "'/a b/a.wav'",
        ' "a.wav" ',
        "\u202aC:\\a.wav",
        '\u202a"C:\\a.wav"',
        "in/a.wav/",
        "in\\a.wav\\\\",
        "../../a.wav",
        "//server/share/a.wav",
        "a b (1)&é.wav",
        pytest.param(
            '"C:\\a.wav"\u202a',
        ),
        pytest.param(
            "\" 'C:\\a.wav ' \"",
        ),
    ],
)
def test_paths_of_a_list_are_cleaned_as_upstreams(path: str, tmp_path: Path) -> None:
    (row,) = read(tmp_path / "x.list", f"{path}|me|EN|text\n")
    assert row.name == upstream_name(path)


def test_tables(tmp_path: Path) -> None:
    """Two columns, or three with a speaker or LJ Speech's two texts."""
    no_pipe = [(name, text.replace("|", "or")) for name, text in SAID]
    tsv = "".join(f"{name}\t{text}\n" for name, text in SAID)
    assert said(read(tmp_path / "transcripts.tsv", tsv)) == SAID
    tsv = "".join(f"{name}\tme\t {text} \n" for name, text in SAID)
    assert said(read(tmp_path / "other.tsv", tsv)) == SAID
    csv = 'a.wav,"Hello, world."\nb.wav,"She said ""no""."\nc.wav,plain\nd.wav,"this | that"\n'
    assert said(read(tmp_path / "x.csv", csv)) == [
        ("a.wav", "Hello, world."),
        ("b.wav", 'She said "no".'),
        ("c.wav", "plain"),
        ("d.wav", "this | that"),
    ]
    pipes = "".join(f"{name}|{text}\n" for name, text in no_pipe)
    assert said(read(tmp_path / "metadata.csv", pipes)) == no_pipe
    lj = 'LJ1|Dr. "X" paid 3.|Doctor "X" paid three.\nLJ2|"Open.|"Open.\n'
    rows = read(tmp_path / "lj.csv", lj)
    assert said(rows) == [("LJ1", 'Doctor "X" paid three.'), ("LJ2", '"Open.')]
    assert {row.language for row in rows} == {None}


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_marks_endings_and_empty_lines(ending: str, mark: bytes, tmp_path: Path) -> None:
    for name, line in (("x.list", "{}|s|EN|{}"), ("x.tsv", "{}\t{}"), ("x.csv", '{},"{}"')):
        lines = [line.format(a, b.replace("|", "or")) for a, b in SAID]
        content = ending.join([lines[0], "", *lines[1:], "   "])  # no end of the last line
        rows = read(tmp_path / name, mark + content.encode())
        assert said(rows) == [(a, b.replace("|", "or")) for a, b in SAID]
        assert [row.where.rpartition(" ")[2] for row in rows] == ["1", "3", "4"]


@pytest.mark.parametrize("sign", ["\u2028", "\u0085", "\x0b", "\x1e"])
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("x.csv", "a.wav,one{}two\n"),
        ("x.list", "a.wav|s|EN|one{}two\n"),
        ("x.tsv", "a.wav\tone{}two\n"),
    ],
)
def test_only_line_ends_end_lines(name: str, line: str, sign: str, tmp_path: Path) -> None:
    (row,) = read(tmp_path / name, line.format(sign))
    assert row.text.split() == ["one", "two"]


# File, content, words of the sentence after the file's name.
MISTAKES = [
    ("x.list", "a.wav|me|EN|one\nb.wav|EN|two\n", r"line 2 is not `path\|speaker\|language\|text`"),
    ("x.list", "a.wav|me|EN|one|two\n", r"line 1 is not `path\|speaker\|language\|text`"),
    ("x.list", "a.wav me EN one\n", "line 1 is not"),
    ("x.list", "a.wav|me|FR|un\n", "line 1: the language 'FR' is not one of zh, jp, ja, en, ko"),
    ("x.list", "\na.wav|me||one\n", "line 2: the language '' is not one of"),
    ("x.list", "a.wav|me|EN|  \n", "line 1 gives no text for a.wav"),
    ("x.list", "|me|EN|one\n", "line 1 does not name a file"),
    ("x.list", "in/|me|EN|one\n/|me|EN|one\n", "line 2 does not name a file"),
    ("x.list", "in/..|me|EN|one\n", "line 1 does not name a file of the folder itself"),
    ("x.list", "a/a.wav|m|EN|1\n\na\\a.wav|m|EN|2\n", "line 3 lists a.wav a second time"),
    ("x.list", "", "lists no clip; write a line for each"),
    ("x.tsv", " \n\n", "lists no clip"),
    ("x.tsv", "a.wav\tone\nb.wav two\n", "line 2 is not `file<TAB>text`"),
    (
        "x.tsv",
        "a.wav\tone\nb.wav\ttwo\tthree\n",
        "line 2 is not `file<TAB>text`; take the further tab",
    ),
    ("x.tsv", "a.wav\t\n", "line 1 gives no text for a.wav"),
    ("x.tsv", "\tone\n", "line 1 does not name a file"),
    ("x.tsv", "../a.wav\tone\n", "line 1 does not name a file of the folder itself"),
    ("x.tsv", "in/../../a.wav\tone\n", "line 1 does not name a file of the folder itself"),
    ("x.tsv", "..\tone\n", "line 1 does not name a file of the folder itself"),
    ("x.tsv", "a.wav\tone\na.wav \ttwo\n", "line 2 lists a.wav a second time"),
    ("x.csv", "a.wav,one\nb.wav,two,three\n", "line 2 is not `file,text`; put its text in double"),
    ("x.csv", "a.wav\n", "line 1 is not `file,text`"),
    ("x.csv", "a.wav,\n", "line 1 gives no text for a.wav"),
    ("x.csv", "a|one\nb\n", r"line 2 is not `file\|text`"),
    ("x.csv", "a|one|two|three\n", "has 4 columns and no header"),
    ("x.csv", 'a.wav,"one\ntwo"\nb.wav,"",x,y\n', "line 3 is not"),
    ("x.csv", "a.wav," + "one " * 40_000 + '\nb.wav,"' + "two " * 40_000, "line 2 opens a quot"),
    (
        "x.list",
        "caf\xe9".encode("latin-1"),
        r"is not UTF-8 text \(probably Windows-1252\); save it",
    ),
    (
        "x.list",
        "a.wav|m|ZH|说话".encode("gbk"),
        r"is not UTF-8 text \(probably GBK\); save it again",
    ),
    (
        "x.list",
        "a.wav|m|JA|はい".encode("cp932"),
        r"is not UTF-8 text \(probably Shift-JIS\); save",
    ),
    ("x.list", "a.wav|m|EN|one\n".encode("utf-16-le"), "UTF-16 without its mark"),
]


@pytest.mark.parametrize(("name", "content", "words"), MISTAKES)
def test_mistakes(name: str, content: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(DataError, match=words) as caught:
        read(path, content)
    assert str(caught.value).startswith(f"{path}:")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    make_clips(tmp_path / "clips", "a.wav")
    for path in (tmp_path / "x.list", tmp_path / "clips"):
        with pytest.raises(DataError, match=r"cannot be read \(.*\); check the path"):
            read_voice_source(tmp_path / "clips", 0, path)


@pytest.mark.parametrize("search", [find_audio, find_transcripts, lambda f: find_beside([f / "a"])])
def test_a_folder_that_may_not_be_listed(search: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(self: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError) as caught:
        search(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: cannot be read (Permission denied); check")


def test_a_pipe_within_quotes_is_text(tmp_path: Path) -> None:
    rows = read(tmp_path / "x.csv", 'a.wav,"this | that"\nb.wav,other\n')
    assert said(rows) == [("a.wav", "this | that"), ("b.wav", "other")]


def test_texts_beside_the_clips(tmp_path: Path) -> None:
    folder = make_clips(tmp_path / "clips", "a.wav", "b.flac.wav", "c.wav")
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbf  Hello,\r\n world.\r\n")
    (folder / "b.flac.lab").write_text("second")
    (folder / "c.txt").write_text("of two, this counts")
    (folder / "c.lab").write_text("and this does not")
    assert clips_of(folder) == [
        ("a.wav", "Hello, world."),
        ("b.flac.wav", "second"),
        ("c.wav", "of two, this counts"),
    ]
    (folder / "c.txt").unlink()
    (folder / "c.lab").write_text(" \n")
    with pytest.raises(DataError, match=r"c\.lab: is empty; write what is said in c\.wav"):
        clips_of(folder)
    (folder / "c.lab").unlink()
    with pytest.raises(DataError, match=r"c\.wav: has no line in a \.txt or \.lab beside it; add"):
        clips_of(folder)
    (folder / "c.lab").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"c\.lab: is not UTF-8 text"):
        clips_of(folder)
    assert read_beside([folder / "d.wav"]) == []


def test_which_file_counts(tmp_path: Path) -> None:
    folder = make_clips(tmp_path / "clips", "a.wav", "b.wav")
    assert find_transcripts(folder) is None
    (folder / "a.txt").write_text("beside")
    (folder / "transcripts.tsv").write_text("a.wav\tone\nb.wav\ttwo\n")
    (folder / "._x.list").write_text("what macOS leaves on other disks")
    assert clips_of(folder) == [("a.wav", "one"), ("b.wav", "two")]
    for other in ("x.list", "metadata.csv"):
        (folder / other).write_text("a.wav|me|EN|other\n")
        with pytest.raises(DataError, match=f"holds {other} and transcripts.tsv; keep one of them"):
            clips_of(folder)
        (folder / other).unlink()
    elsewhere = tmp_path / "fixed.list"
    elsewhere.write_text(f"{folder / 'b.wav'}|me|JA|other\n")
    source = read_voice_source(folder, 0, elsewhere)
    assert source.clips == [Clip("b.wav", folder / "b.wav", "other", "ja")]
    assert source.unlisted == ["a.wav"]


def test_clips_and_lines_have_to_meet(tmp_path: Path) -> None:
    folder = make_clips(tmp_path / "clips", "a.wav", "b.b.wav")
    path = folder / "metadata.csv"
    path.write_text("a|one\nb.b|two\n")
    assert clips_of(folder) == [("a.wav", "one"), ("b.b.wav", "two")]
    for content, words in (
        ("a|one\n", r"b\.b\.wav: has no line in metadata\.csv; add one or take the clip out"),
        ("a|one\nb.b|two\nc|three\n", r"line 3 lists c, which is not in the folder"),
        ("a|one\nb|two\n", r"line 2 lists b, which is not in the folder"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=words):
            clips_of(folder)


def test_a_clip_listed_with_and_without_its_ending_is_listed_twice(tmp_path: Path) -> None:
    folder = make_clips(tmp_path / "clips", "a.wav", "b.wav")
    (folder / "metadata.csv").write_text("a|one\nb|two\na.wav|three\n")
    with pytest.raises(DataError, match=r"line 3 lists a\.wav a second time"):
        clips_of(folder)


@pytest.mark.parametrize("name", ["x.csv", "transcripts.tsv"])
def test_columns_the_wrong_way_round(name: str, tmp_path: Path) -> None:
    """A text is longer than any name may be."""
    folder = make_clips(tmp_path / "clips", "a.wav")
    text = "in being comparatively modern " * 10
    (folder / name).write_text(text + {"x.csv": ","}.get(name, "\t") + "a.wav\n")
    with pytest.raises(DataError, match="has its files in column 2 and no header"):
        clips_of(folder)


def test_a_list_is_written_as_upstream_reads_it(tmp_path: Path) -> None:
    rows = [
        Transcript("a.wav", "Hello, “world”.", "en", "here"),
        Transcript("b.wav", "こんにちは", "ja", "here"),
        Transcript("c.wav", "none", None, "here"),
    ]
    path = tmp_path / "x.list"
    write_list(path, rows, tmp_path / "clips", "me")
    lines = path.read_bytes().decode().split("\n")
    assert lines == [
        f"{tmp_path / 'clips' / 'a.wav'}|me|EN|Hello, “world”.",
        f"{tmp_path / 'clips' / 'b.wav'}|me|JA|こんにちは",
        f"{tmp_path / 'clips' / 'c.wav'}|me|EN|none",
        "",
    ]
    again = read_transcripts(path)
    assert [row[:3] for row in again] == [*(row[:3] for row in rows[:2]), ("c.wav", "none", "en")]
    for text in ("a|b", "a\nb"):
        with pytest.raises(
            DataError, match=r"^here: the text or the path holds `\|` or a line break; take"
        ):
            write_list(path, [rows[0]._replace(text=text)], tmp_path, "me")
    assert read_transcripts(path) == again
    with pytest.raises(UserError, match="cannot be written"):
        write_list(tmp_path / "absent" / "x.list", rows, tmp_path, "me")


@pytest.mark.slow
def test_real_clips_are_prepared_one_to_one(tmp_path: Path) -> None:
    """Twenty minutes of one reader; none is refused."""
    if not KATHLEEN.is_dir():
        pytest.skip("../shared/voices is absent")
    folder, lines, seconds = tmp_path / "clips", [], 0.0
    folder.mkdir()
    for line in (KATHLEEN / "transcripts.tsv").read_text("utf-8").splitlines(keepends=True):
        if seconds < 20 * 60:
            path = Path(shutil.copy(KATHLEEN / line.split("\t")[0], folder))
            seconds += soundfile.info(path).duration
            lines.append(line)
    (folder / "transcripts.tsv").write_text("".join(lines), "utf-8")
    base = find_base("demo")
    config = base.read_generator().config
    began = time.perf_counter()
    options = PrepareOptions(held_out=0, strict=True)
    output = prepare_voice(folder, tmp_path / "prepared", base, config, options)
    took = time.perf_counter() - began
    print(f"\npreparing: {len(lines)} clips, {seconds:.0f} s in {took:.1f} s")
    names = [line.split("\t")[0] for line in lines]
    verdict = judge(output, "v2", config.reduced_dims.ssl_dim)
    assert (verdict.kept, verdict.dropped) == (sorted(names), {})
    assert list(read_rows(output)) == names
    assert base.content_encoder is not None
    encoder = load_content_encoder(base.content_encoder)
    wavs = [read_speech(folder / name, RATE) for name in names[:30]]
    began = time.perf_counter()
    for wav in wavs:
        speech_features(encoder, wav, RATE, "a clip")
    took = time.perf_counter() - began
    print(f"features: {sum(map(len, wavs)) / RATE:.0f} s in {took:.1f} s")


@pytest.mark.parametrize(("clips", "held_out"), [(3, 0), (4, 1), (30, 3), (200, 20), (500, 20)])
def test_a_tenth_of_the_clips_is_held_out_and_no_more_than_can_be_heard(
    clips: int, held_out: int, tmp_path: Path
) -> None:
    names = [f"{number:03}.wav" for number in range(clips)]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "transcripts.tsv").write_text("".join(f"{name}\tword\n" for name in names))
    source = read_voice_source(tmp_path)
    assert [clip.name for clip in source.held_out] == names[clips - held_out :]
    assert len(source.training) == clips - held_out
