"""Tables and folders as people have them: the text that is taught is the right one, or none is."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from mlx_vits.errors import DataError
from mlx_vits.preprocessing.clips import needs_clips
from mlx_vits.preprocessing.sources import read_voice_source
from mlx_vits.preprocessing.transcripts import read_transcripts

SAID = ("Well, this is it.", "It was a plain day, and warm.", "She said no, then yes.")


def taught(path: Path, content: str | bytes) -> list[tuple[str, str]]:
    """What a file teaches of each clip."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(row.name, row.text) for row in read_transcripts(path)]


def lines(form: str, texts: Any = SAID) -> str:
    return "".join(form.format(i=i, text=text) + "\n" for i, text in enumerate(texts, 1))


EXPECTED = [(f"{i}.wav", text) for i, text in enumerate(SAID, 1)]

# Tables whose texts are plain to see, by the name of the file.
READ = {
    "a speaker at the end": (
        "metadata.csv",
        "audio_file|text|speaker_name\n" + lines("{i}.wav|{text}|narrator"),
    ),
    "a duration in between": ("x.csv", "File,Duration,Text\n" + lines('{i}.wav,6.2{i},"{text}"')),
    "pandas's row numbers": ("x.csv", ",file,text\n" + lines('{i},{i}.wav,"{text}"')),
    "the text first": ("x.tsv", "sentence\tpath\n" + lines("{text}\t{i}.wav")),
    "Common Voice": (
        "validated.tsv",
        "client_id\tpath\tsentence_id\tsentence\tup_votes\tage\tlocale\n"
        + lines("ab\t{i}.wav\tff0{i}\t{text}\t2\t\ten"),
    ),
    "LJ Speech's columns by name": (
        "x.csv",
        "id|text|normalized_text\n" + lines("wavs/{i}.wav|No {i}.|{text}"),
    ),
    "a speaker first, by name": ("x.list", "speaker|path|text\n" + lines("me|in/{i}.wav|{text}")),
    "a comma in every text": ("x.csv", lines("{i}.wav,{text}")),
    "commas under a header": ("x.csv", "file,text\n" + lines("{i}.wav,{text}")),
    "some commas quoted": ("x.csv", lines("{i}.wav,{text}").replace(SAID[1], f'"{SAID[1]}"')),
    "semicolons": ("x.csv", lines("{i}.wav;{text}").replace("\n", "\r\n")),
    "a spreadsheet's empty columns": ("x.csv", lines('{i}.wav,"{text}",,,')),
    "tabs in a .csv": ("x.csv", lines("{i}.wav\t{text}")),
    "commas in a .tsv": ("transcripts.tsv", lines('{i}.wav,"{text}"')),
    "a number of the speaker": ("x.csv", lines("DUMMY/{i}.wav|7|{text}")),
    "languages in between": ("x.list", lines("{i}.wav|en|{text}")),
    "two columns in a .list": ("x.list", lines("{i}.wav|{text}")),
    "upstream's columns in a .csv": ("x.csv", lines("in/{i}.wav|me|EN|{text}")),
    "UTF-16 as Windows writes it": ("x.list", lines("{i}.wav|me|EN|{text}").encode("utf-16")),
    "manifest": (
        "manifest.jsonl",
        lines("{text}", [json.dumps({"audio_filepath": f"/d/{n}", "duration": 2.5, "text": t})
                         for n, t in EXPECTED]),
    ),
    "one JSON array": (
        "x.jsonl",
        json.dumps([{"file_name": n, "transcription": t, "speaker": "me"} for n, t in EXPECTED]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_what_is_plain_is_read(kind: str, tmp_path: Path) -> None:
    name, content = READ[kind]
    assert taught(tmp_path / name, content) == EXPECTED


LABEL = "has numbers or one and the same word in its last column"
# Tables that may teach something else than what is said.
REFUSED = {
    "durations": ("x.tsv", lines("{i}.wav\t{text}\t6.2{i}"), LABEL),
    "one duration": ("x.tsv", "1.wav\tHello there.\t6.22\n", LABEL),
    "the same speaker": ("x.csv", lines("{i}.wav|{text}|narrator"), LABEL),
    "the same, quoted": ("x.csv", lines('{i}.wav,"{text}",narrator'), "has 3 columns"),
    "languages": ("x.tsv", lines("{i}.wav\t{text}\ten"), LABEL),
    "durations after commas": ("x.csv", lines("{i}.wav,{text}, 6.2{i}"), LABEL),
    "speakers": (
        "x.tsv",
        "".join(f"{i}.wav\t{text}\t{i % 2}th\n" for i, text in enumerate(SAID)),
        "has three columns",
    ),
    "phonemes": ("x.csv", "1.wav|it was a plain day|IH1 T W AA1 Z AH0 P L EY1 N D EY1\n", "three"),
    "pinyin": ("x.csv", "1.wav|我们走吧|wo3 men5 zou3 ba5\n2.wav|好|hao3\n", "has three columns"),
    "a header of other names": ("x.csv", "Datei|Satz|Dauer\n" + lines("{i}|{text}|{i}.5"), LABEL),
    "lengths alone": ("clip_durations.tsv", "1.wav\t3120\n2.wav\t4512\n", LABEL),
    "commas without spaces": ("x.csv", "1.wav,好,我们走吧\n2.wav,对,没有人\n", "has 3 columns"),
    "six columns": ("x.tsv", lines("{i}.wav\ta\tb\tc\td\t{text}"), "has 6 columns and no header"),
    "speakers first": ("x.list", lines("me|{i}.wav|{text}"), "has its files in column 2"),
    "a header without texts": ("x.csv", "file,speaker\n1.wav,me\n", "call that column `text`"),
    "a header without files": ("x.tsv", "text\tspeaker\none\tme\n", "call that column `file`"),
    "keys of other names": ("x.jsonl", '{"a": "1.wav", "b": "one"}\n', "no `file` and `text`"),
    "no JSON": ("x.jsonl", '{"file": "1.wav", "text": "one"\n', "line 1 is not a JSON object"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_plain_is_refused(kind: str, tmp_path: Path) -> None:
    name, content, words = REFUSED[kind]
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        taught(tmp_path / name, content)
    assert str(caught.value).startswith(f"{tmp_path / name}:")


def test_a_header_cures_what_was_refused(tmp_path: Path) -> None:
    """The sentence gives the line to begin the file with."""
    path, content = tmp_path / "x.tsv", lines("{i}.wav\t{text}\t6.2{i}")
    with pytest.raises(DataError, match=r"begin it with a line .*`file<TAB>text<TAB>speaker`"):
        taught(path, content)
    assert taught(path, "file\ttext\tspeaker\n" + content) == EXPECTED


def test_commas_that_are_not_quoted_belong_to_the_text(tmp_path: Path) -> None:
    texts = ["Plain.", "Well, then, go.", '"No," she said, "yes."', "One two three, four"]
    content = lines("{i}.wav,{text}", texts)
    assert [text for _, text in taught(tmp_path / "x.csv", content)] == texts
    with pytest.raises(DataError, match="line 5 is not `file,text`; put its text in double quotes"):
        taught(tmp_path / "x.csv", content + "5.wav,It cost 1,000 then.\n")


def test_quotes_of_spreadsheets_are_taken_off_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    first, second = '1.wav\t"He said ""no""."\n', '2.wav\t"Yes," she said, "it is."\n'
    broken = '3.wav\t"Two\nlines"\n'
    said = [('1.wav', 'He said "no".'), ("2.wav", '"Yes," she said, "it is."')]  # fmt: skip
    assert taught(path, first + second) == said
    assert taught(path, first + broken) == [said[0], ("3.wav", "Two lines")]
    with pytest.raises(DataError, match="line 3 opens a quotation mark that is not closed"):
        taught(path, first + second + broken)  # half of the third text would be lost


def test_languages_of_lists_and_tables(tmp_path: Path) -> None:
    tags = {"EN": "en", "english": "en", "en-US": "en", "en_GB": "en", "zh-CN": "zh", "JP": "ja"}
    path = tmp_path / "x.list"
    path.write_text("".join(f"{tag}.wav|me|{tag}|words\n" for tag in tags))
    assert [row.language for row in read_transcripts(path)] == list(tags.values())
    path.write_text("a.wav|en|one\nb.wav|de|zwei\nc.wav|en|three\n")
    with pytest.raises(DataError, match="line 2: the language 'de' is not one of"):
        read_transcripts(path)
    path.write_text("a.wav|me|zh-HK|words\n")  # Cantonese to some, Mandarin to others
    with pytest.raises(DataError, match="'zh-HK' is not one of"):
        read_transcripts(path)


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def heard(folder: Path, **options: Any) -> dict[str, str]:
    """What is taught of each recording, by its path in the folder."""
    clips = read_voice_source(folder, 0, **options).clips
    return {clip.path.relative_to(folder).as_posix(): clip.text for clip in clips}


@pytest.mark.parametrize(
    ("recording", "listed"),
    [
        ("1.wav", "wavs/1.wav"),
        ("wavs/1.wav", "wavs/1.wav"),
        ("wavs/LJ1.wav", "LJ1"),
        ("Clip1.WAV", "clip1.wav"),
        ("clip.1.flac", "Clip.1"),
        (
            unicodedata.normalize("NFD", "café été.wav"),
            unicodedata.normalize("NFC", "café été.wav"),
        ),
        (unicodedata.normalize("NFC", "한국어.wav"), unicodedata.normalize("NFD", "한국어")),
        ("'it's' %20 #1 [x].wav", "'it's' %20 #1 [x].wav"),
        ("你好 世界.wav", "D:\\录音\\你好 世界.wav"),
    ],
)
def test_names_that_differ_by_system_are_matched(
    recording: str, listed: str, tmp_path: Path
) -> None:
    folder = make(tmp_path / "clips", recording)
    (folder / "metadata.csv").write_text(f"\ufeff{listed}|what is said\n", encoding="utf-8")
    assert heard(folder) == {recording: "what is said"}


def test_an_exact_name_comes_before_a_similar_one(tmp_path: Path) -> None:
    folder = make(tmp_path / "clips", "a.wav", "A.WAV", "b.wav")
    if len(list(folder.iterdir())) < 3:
        pytest.skip("this disk does not tell a.wav from A.WAV")
    (folder / "x.list").write_text("A.WAV|me|EN|upper\na.wav|me|EN|lower\n")
    assert heard(folder) == {"A.WAV": "upper", "a.wav": "lower"}
    (folder / "x.list").write_text("a.Wav|me|EN|either\n")
    with pytest.raises(DataError, match=r"lists a\.Wav, which is not in the folder"):
        heard(folder)


def test_a_near_miss_is_named_and_not_taken(tmp_path: Path) -> None:
    folder = make(tmp_path / "clips", "clip_01.wav")
    for listed in ("clip_1.wav", "clip 01.mp3", "Clip-01"):
        (folder / "transcripts.tsv").write_text(f"{listed}\twords\n")
        with pytest.raises(DataError, match=r"not in the folder; did you mean clip_01\.wav\?"):
            heard(folder)


def test_clips_of_sub_folders(tmp_path: Path) -> None:
    """Names that recur in several are told apart by their folders, or refused."""
    folder = make(tmp_path / "clips", "ch1/1.wav", "ch1/2.wav", "ch2/1.wav")
    path = folder / "all.list"
    listed = "".join(f"C:\\book\\{p}|me|EN|{p[2]}\n" for p in ("ch1\\1.wav", "ch2\\1.wav"))
    path.write_text(listed)
    assert heard(folder) == {"ch1/1.wav": "1", "ch2/1.wav": "2"}
    source = read_voice_source(folder, 0)
    assert [clip.name for clip in source.clips] == ["ch1_1.wav", "ch2_1.wav"]
    assert source.unlisted == ["ch1_2.wav"]
    for wrong in ("1.wav", "ch3/2.wav", "ch2/2.wav"):
        path.write_text(f"ch1/1.wav|me|EN|one\n{wrong}|me|EN|other\n")
        said: list[str] = []
        assert heard(folder, fault=said.append) == {"ch1/1.wav": "one"}
        assert "which is not in the folder" in said[0]
    path.unlink()
    for name, text in (("ch1/1", "one"), ("ch1/2", "two"), ("ch2/1", "three")):
        (folder / f"{name}.txt").write_text(text)
    assert list(heard(folder).values()) == ["one", "two", "three"]
    (folder / "held_out.txt").write_text("ch2/1\n")
    assert [c.name for c in read_voice_source(folder).held_out] == ["ch2_1.wav"]


def test_another_recording_beside_the_list_hides_no_sub_folder(tmp_path: Path) -> None:
    folder = make(tmp_path / "clips", "sample.wav", "wavs/1.wav", "wavs/11.wav")
    (folder / "metadata.csv").write_text("1|one\n11|\n")
    said: list[str] = []
    assert heard(folder, fault=said.append) == {"wavs/1.wav": "one"}
    assert [reason.rpartition("/")[2][:32] for reason in said] == [
        "metadata.csv: line 2 gives no te",
        "sample.wav: has no line in metad",
        "11.wav: has no line in metadata.",
    ]


def test_no_path_leads_out_of_the_folder(tmp_path: Path) -> None:
    make(tmp_path, "secret.wav", "clips/a.wav", "clips/wavs/b.wav")
    for listed in ("../secret.wav", "wavs/../../secret.wav", str(tmp_path / "secret.wav")):
        for name in ("x.list", "x.csv"):
            (tmp_path / "clips" / name).write_text(f"{listed}|me|EN|words\n")
            with pytest.raises(DataError, match=r"not (name a file of|in) the folder"):
                heard(tmp_path / "clips")
            (tmp_path / "clips" / name).unlink()


def test_texts_beside_clips_whatever_the_case(tmp_path: Path) -> None:
    folder = make(tmp_path / "clips", "1.WAV", "Two.wav", "3.wav")
    for name in ("1.LAB", "two.TXT", "3.txt"):
        (folder / name).write_text(name)
    assert not needs_clips([folder])
    assert heard(folder) == {"1.WAV": "1.LAB", "Two.wav": "two.TXT", "3.wav": "3.txt"}
    (folder / "3.txt").unlink()
    (folder / "Two.txt").write_text("of its own name")
    assert heard(folder, fault=lambda reason: None)["Two.wav"] == "of its own name"


def test_what_a_recogniser_left_beside_each_clip_is_no_table(tmp_path: Path) -> None:
    folder = make(tmp_path / "clips", "1.wav", "2.wav")
    for stem in "12":
        (folder / f"{stem}.txt").write_text(f"text {stem}")
        (folder / f"{stem}.tsv").write_text(f"start\tend\ttext\n0\t900\ttext {stem}\n")
    assert heard(folder) == {"1.wav": "text 1", "2.wav": "text 2"}


def test_clips_to_listen_to_are_named_as_in_lists(tmp_path: Path) -> None:
    folder = make(
        tmp_path / "clips", *(f"{unicodedata.normalize('NFD', 'é')}{i}.wav" for i in "123")
    )
    (folder / "transcripts.tsv").write_text("é1\tone\né2\ttwo\né3\tthree\n", encoding="utf-8")
    (folder / "held_out.txt").write_text("\ufeffé2.wav\r\n", encoding="utf-8")
    assert [clip.text for clip in read_voice_source(folder).held_out] == ["two"]
