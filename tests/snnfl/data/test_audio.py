import numpy as np
import pytest
import torch
from scipy.io import wavfile

from snnfl import data
from snnfl.config import ConfigError, DataConfig


def say(path, frequency, rate=8000, seconds=0.3):
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(int(rate * seconds)) / rate
    wavfile.write(path, rate, (np.sin(2 * np.pi * frequency * times) * 2**14).astype(np.int16))


@pytest.fixture
def root(tmp_path):
    """Ten low and ten high tones of two people."""
    for label, frequency in (("low", 300), ("high", 2500)):
        for person in ("ann", "zoe"):
            for number in range(5):
                rate = 16000 if person == "zoe" else 8000
                say(
                    tmp_path / "mine" / label / person / f"{number}.wav",
                    frequency + 20 * number,
                    rate,
                    0.3 + 0.1 * number,
                )
    return tmp_path


def load(root, source="audio_folder", **options):
    folder = {"folder": "mine"} if source == "audio_folder" else {}
    return data.load(DataConfig(source=source, root=str(root), **folder, **options))


@pytest.mark.parametrize("filters", ["mel", "cochlear"])
def test_a_folder_of_recordings_becomes_bands_over_time(root, filters):
    dataset = load(root, filters=filters, resolution=20, time_bins=12)
    assert dataset.class_names == ("high", "low")
    assert dataset.input_shape == (12, 20)
    assert dataset.sequence
    assert len(dataset.train_labels) == 16
    assert len(dataset.test_labels) == 4
    loudest = dataset.train_images.mean(1).argmax(1)
    assert loudest[dataset.train_labels == 0].min() > loudest[dataset.train_labels == 1].max() + 3
    normal = dataset.normalise(dataset.train_images)
    torch.testing.assert_close(normal.mean((0, 1)), torch.zeros(20), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal.std((0, 1)), torch.ones(20), atol=1e-2, rtol=0)


def test_the_defaults_are_50_frames_of_40_bands(root):
    assert load(root).input_shape == (50, 40)


def test_speakers_are_natural_clients(root):
    dataset = load(root)
    config = DataConfig(partition="natural", clients=2, minimum_samples=1)
    parts = data.partition(dataset.train_labels, config, 0, dataset.users)
    assert [dataset.users[part].unique().tolist() for part in parts] == [[0], [1]]


def test_rates_are_brought_to_the_lowest(root, monkeypatch):
    rates = []
    monkeypatch.setattr("snnfl.data.audio.resample", lambda wave, own, common: rates.append((own, common)) or wave)
    load(root)
    assert set(rates) == {(8000, 8000), (16000, 8000)}


def test_what_was_computed_is_kept_beside_the_recordings(root, monkeypatch):
    first = load(root, time_bins=7)
    monkeypatch.setattr("snnfl.data.audio.read_wave", lambda path: pytest.fail("must not be read again"))
    for memory in (data.sources._load, data.sources._part):
        memory.cache_clear()
    assert torch.equal(load(root, time_bins=7).train_images, first.train_images)


def test_a_damaged_recording_is_one_line_that_names_it(root):
    path = root / "mine/low/ann/3.wav"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ConfigError, match=rf"^data\.source=audio_folder: {path} is no WAV file \(.*\); replace it$"):
        load(root)


def test_a_file_is_no_folder(root):
    (root / "file").touch()
    with pytest.raises(ConfigError, match=r"data\.folder=file: expected a folder of WAV files"):
        data.load(DataConfig(source="audio_folder", root=str(root), folder="file"))


@pytest.fixture
def commands(tmp_path):
    """Two words of three speakers in the published layout, one recording in each list."""
    folder = tmp_path / "SpeechCommands/speech_commands_v0.02"
    for word, frequency in (("yes", 300), ("no", 2500), ("_background_noise_", 50)):
        for speaker in ("00aa", "11bb", "22cc"):
            say(folder / word / f"{speaker}_nohash_0.wav", frequency, 16000)
    (folder / "testing_list.txt").write_text("yes/00aa_nohash_0.wav\nno/00aa_nohash_0.wav\n")
    (folder / "validation_list.txt").write_text("no/11bb_nohash_0.wav\n")
    return tmp_path


def test_speech_commands_have_their_published_splits_and_speakers(commands):
    dataset = load(commands, "speech_commands")
    assert dataset.class_names == ("no", "yes")
    assert dataset.train_labels.tolist() == [0, 1, 1]
    assert dataset.users.tolist() == [1, 0, 1]
    assert dataset.test_labels.tolist() == [0, 1]
    assert dataset.input_shape == (50, 40)


@pytest.mark.parametrize("lacking", ["testing_list.txt", "validation_list.txt"])
def test_an_incomplete_folder_says_where_to_get_it(commands, lacking):
    (commands / "SpeechCommands/speech_commands_v0.02" / lacking).unlink()
    with pytest.raises(data.DataNotFoundError, match=rf"lacks {lacking}; download .*http://download\.tensorflow"):
        load(commands, "speech_commands")
    with pytest.raises(data.DataNotFoundError, match=r"lacks testing_list\.txt"):
        load(commands / "elsewhere", "speech_commands")
