import wave

import pytest

from experiments.federated_snn.spoken_folder import LANGUAGES, main, make_folder, prompts
from snnfl.config import ConfigError


@pytest.fixture
def sounds(tmp_path):
    """The packages' folders, each language's a link to that of its voice."""
    for language in LANGUAGES:
        for name, seconds in (
            ("hello", 1),
            ("digits/1", 0.5),
            ("long", 4 if language == "it" else 1),
            ("silence/1", 1),
        ):
            write(tmp_path / "sounds" / f"{language}_voice" / f"{name}.wav", seconds)
        (tmp_path / "sounds" / language).symlink_to(f"{language}_voice")
    write(tmp_path / "sounds/en_voice/only-english.wav", 1)
    return tmp_path / "sounds"


def write(path, seconds):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\0\0" * int(8000 * seconds))


def test_prompts_are_those_that_all_languages_have_and_say_in_short(sounds):
    assert prompts(sounds) == ["digits/1.wav", "hello.wav"]


def test_the_links_to_the_voices_may_be_missing(sounds):
    for language in LANGUAGES:
        (sounds / language).unlink()
    assert prompts(sounds) == ["digits/1.wav", "hello.wav"]


def test_each_language_is_a_class(sounds, tmp_path):
    assert make_folder(sounds, tmp_path / "spoken") == 2
    found = sorted(str(path.relative_to(tmp_path / "spoken")) for path in (tmp_path / "spoken").rglob("*.wav"))
    assert found == sorted(f"{language}/{name}.wav" for language in LANGUAGES for name in ("digits-1", "hello"))


def test_a_folder_that_is_not_empty_is_left_alone(sounds, tmp_path):
    with pytest.raises(ConfigError, match="is not empty; remove it, or name another"):
        make_folder(sounds, tmp_path)


def test_what_is_not_installed_is_one_line_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["spoken_folder", str(tmp_path / "x"), "--sounds", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"en: not there; type: apt-get install asterisk-core-sounds-en-wav"):
        main()


def test_the_command_says_what_it_made(sounds, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["spoken_folder", str(tmp_path / "x"), "--sounds", str(sounds)])
    main()
    expected = f"{tmp_path / 'x'}: 2 prompts in each of English, Spanish, French, Italian, Russian\n"
    assert capsys.readouterr().out == expected
