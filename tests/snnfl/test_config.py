"""Round trips between the four places a configuration is written, and one line for every mistake."""

import collections
import dataclasses
import json
import math
import typing
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from snnfl.config import (
    AuditConfig,
    Config,
    ConfigError,
    ConversionConfig,
    DetectionConfig,
    EvaluationConfig,
    ModelConfig,
    PoisoningConfig,
    QuantizationConfig,
    StrategyConfig,
    TrainingConfig,
    compose,
    flatten,
    merging,
    mistakes,
    nearest,
    options,
    prefixed,
    to_yaml,
    unflatten,
    update_kind,
    validate,
)
from snnfl.config.checks import SPIKING
from snnfl.config.declaration import choices
from snnfl.config.merging import read_mapping

FIELDS = {key: (item, kind) for key, item, kind in options()}
NUMBERS = [key for key, (_, kind) in FIELDS.items() if kind in (int, float)]
TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=12)
RAY_OPTIONS = {"cpus_per_client", "gpus_per_client", "address"}
SPIKING_VALUES = {
    "neurons": "head",
    "time_steps": 4,
    "beta": 0.9,
    "learn_beta": "true",
    "threshold": 0.5,
    "learn_threshold": "true",
    "reset": "zero",
    "reset_delay": "false",
    "surrogate": "atan",
    "surrogate_slope": 2,
    "encoding": "poisson",
    "readout": "rate",
    "output_fires": "true",
    "threshold_norm": "true",
}
FOLDER_NAMES = TEXT.filter(lambda name: name not in ("", ".", "..") and "/" not in name and name.isprintable())


def in_range(key):
    """Values that the option accepts, extremes included."""
    item, kind = FIELDS[key]
    low, high, above = (item.metadata[bound] for bound in ("low", "high", "above"))
    if key == "run.name":
        return FOLDER_NAMES
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    if choices(kind):
        return st.none() | st.sampled_from(choices(kind))
    if kind is int:
        return st.integers(low, 2**40 if high is None else int(high))
    if kind is float:
        low = above if low is None else low
        return st.floats(low, high, exclude_min=above is not None, allow_nan=False, allow_infinity=False)
    return {
        bool: st.booleans(),
        bool | None: st.none() | st.booleans(),
        str: TEXT,
        int | None: st.none() | st.integers(low, 2**40),
        float | None: st.none()
        | st.floats(above if low is None else low, high, exclude_min=above is not None).filter(math.isfinite),
        str | None: st.none() | TEXT,
        tuple[int, ...]: st.lists(st.integers(0, 10**6), max_size=4).map(tuple),
        tuple[str, ...]: st.lists(TEXT, max_size=3).map(tuple),
        tuple[float, ...]: st.lists(st.floats(-1e9, 1e9), max_size=3).map(tuple),
    }[kind]


@st.composite
def configs(draw):
    """Configurations with some options changed."""
    drawn = collections.defaultdict(dict)
    for key in draw(st.lists(st.sampled_from(list(FIELDS)), unique=True, max_size=len(FIELDS))):
        section, name = key.split(".")
        drawn[section][name] = draw(in_range(key))
    if drawn["engine"].get("name") == "deployment":
        drawn["model"].pop("weights", None)  # a file of the server's
    if "potential" in drawn["conversion"].get("calibration", ""):
        drawn["conversion"].pop("readout", None)  # the second half of the steps, which potentials don't change
    if drawn["conversion"].get("calibration") == "time_bias":
        drawn["conversion"] |= {"signed": False, "burst": 1}
    if drawn["conversion"].get("burst", 1) == 1:
        drawn["conversion"].pop("two_sided", None)
    if drawn["conversion"].get("correction", "none") == "none":
        drawn["conversion"].pop("correction_steps", None)
    if drawn["conversion"].get("data") != "synthetic":
        drawn["conversion"].pop("synthesis_iterations", None)
    sections = {name: dataclasses.replace(getattr(Config(), name), **values) for name, values in drawn.items()}
    config = dataclasses.replace(Config(), **sections)
    assume(config.run.keep_checkpoints or not config.run.resume)
    assume(config.strategy.minimum_replies <= config.data.clients)
    unused = {"ray": {"connection"}, "deployment": RAY_OPTIONS}.get(config.engine.name, {"connection", *RAY_OPTIONS})
    defaults = {name: getattr(Config().engine, name) for name in unused}
    config = dataclasses.replace(config, engine=dataclasses.replace(config.engine, **defaults))
    for sections in (
        {"poisoning": PoisoningConfig(), "detection": DetectionConfig()},  # what fits is in test_poisoning_config.py
        {"audit": AuditConfig()},
        {"evaluation": EvaluationConfig()},
        {"model": ModelConfig(), "training": TrainingConfig(), "strategy": StrategyConfig()},  # what fits: see below
        {"quantization": QuantizationConfig()},  # what fits is in tests/snnfl/models/test_quantised.py
    ):
        if any(mistake.startswith(tuple(sections)) for mistake in mistakes(config)):
            config = dataclasses.replace(config, **sections)
    seen = config.engine.name != "ray" or config.engine.gpus_per_client > 0
    return config if seen else dataclasses.replace(config, run=dataclasses.replace(config.run, device="cpu"))


def one_line(error, *parts):
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert all(part in message for part in parts), message


@settings(max_examples=15, deadline=None)
@given(configs())
def test_unflatten_undoes_flatten(config):
    flat = flatten(config)
    assert set(flat) == set(FIELDS)
    assert all(type(value) in (bool, int, float, str) for value in flat.values())
    assert unflatten(flat) == config


def test_a_file_that_is_read_again_is_as_it_was(tmp_path):
    """It is parsed once, and who read it before may have changed what came out."""
    file = tmp_path / "config.yaml"
    file.write_text("training: {milestones: [3, 5]}\n")
    read_mapping(file)["training"]["milestones"].append(7)
    assert compose(file).training.milestones == (3, 5)
    file.write_text("training: {milestones: [4]}\n")
    assert compose(file).training.milestones == (4,)


@settings(max_examples=15, deadline=None)
@given(config=configs())
def test_compose_reads_what_to_yaml_writes(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert compose(path) == config


@settings(max_examples=15, deadline=None)
@given(configs())
def test_every_option_can_be_overridden(config):
    default = dataclasses.asdict(Config())
    overrides = [
        f"{section}.{name}={json.dumps(value, ensure_ascii=False)}"  # JSON is YAML
        for section, fields in dataclasses.asdict(config).items()
        for name, value in fields.items()
        if value != default[section][name]
    ]
    assert compose(overrides=overrides) == config


def test_more_replies_than_clients_cannot_be_asked_for():
    with pytest.raises(ConfigError) as error:
        compose(overrides=["data.clients=3", "strategy.minimum_replies=4"])
    one_line(error, "strategy.minimum_replies=4", "data.clients=3")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["engine.cpus_per_client=2"], ["engine.cpus_per_client=2.0", "engine.name=ray", "engine.name=in_process"]),
        (["engine.name=deployment", "engine.address=auto"], ["engine.address=auto", "only engine.name=ray uses it"]),
        (
            ["engine.name=ray", "engine.connection=lab"],
            ["engine.connection=lab", "only engine.name=deployment uses it"],
        ),
        (["engine.name=ray", "run.device=cuda"], ["run.device=cuda", "engine.gpus_per_client=0"]),
        (["engine.name=deployment", "model.weights=a.safetensors"], ["model.weights=a.safetensors", "reads no file"]),
        (
            ["engine.name=ray", "engine.address="],
            ["engine.address=", "nothing after", "engine.address=null means none"],
        ),
        (["engine.name=ray", "engine.address=''"], ["engine.address=''", "expected text that isn't empty or null"]),
        (["engine.name=deployment", "engine.connection=''"], ["engine.connection=''", "isn't empty or null"]),
        (["run.directory=''"], ["run.directory=''", "expected text that isn't empty ("]),
        (["engine.name=rai"], ["engine.name=rai", "did you mean 'ray'"]),
    ],
)
def test_an_option_that_the_engine_does_not_use_is_refused(overrides, parts):
    with pytest.raises(ConfigError) as error:
        compose(overrides=overrides)
    one_line(error, *parts)


def test_the_options_of_an_engine_are_accepted():
    assert compose(overrides=["engine.name=ray", "engine.gpus_per_client=0.5", "run.device=cuda"]).engine.name == "ray"
    assert compose(overrides=["engine.name=deployment", "engine.connection=lab"]).engine.connection == "lab"


LIF = ["model.neuron=lif", "strategy.spiking=false"]


@pytest.mark.parametrize("value", SPIKING_VALUES.items(), ids=str)
def test_an_option_of_spiking_networks_needs_neurons(value):
    option = "model.{}={}".format(*value)
    with pytest.raises(ConfigError) as error:
        compose(overrides=[option])
    one_line(error, option.partition("=")[0], "model.neuron=relu", "model.neuron=lif")
    assert getattr(compose(overrides=[option, *LIF]).model, value[0]) is not None


def test_every_option_of_spiking_networks_is_checked():
    assert sorted(SPIKING_VALUES) == sorted(SPIKING)
    nullable = {item.name for item in dataclasses.fields(ModelConfig) if item.default is None} - {"weights"}
    assert nullable == {*SPIKING}


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model.neuron=lif"], ["strategy.spiking=true", "model.neuron=lif", "set strategy.spiking=false", "{spiking"]),
        ([*LIF, "model.neuron=if", "model.beta=0.9"], ["model.beta=0.9", "model.neuron=if doesn't leak"]),
        ([*LIF, "model.neuron=if", "model.learn_beta=true"], ["model.learn_beta=True", "model.neuron=if"]),
        ([*LIF, "model.readout=rate", "model.output_fires=true"], ["model.output_fires=True", "model.readout=rate"]),
        (
            [*LIF, "model.surrogate=straight_through", "model.surrogate_slope=2"],
            ["model.surrogate_slope=2.0", "straight_through has none"],
        ),
        ([*LIF, "evaluation.curve=[4]"], ["evaluation.curve=[4]", "model.neuron=lif"]),
        (["training.loss=per_step"], ["training.loss=per_step", "model.neuron=relu"]),
        (
            ["training.optimizer=adam", "training.momentum=0.5"],
            ["training.momentum=0.5", "training.optimizer=adam", "say training.momentum=0.9, the default"],
        ),
    ],
)
def test_options_of_spiking_networks_that_contradict_each_other(overrides, parts):
    with pytest.raises(ConfigError) as error:
        compose(overrides=overrides)
    one_line(error, *parts)


def test_a_spiking_network_names_its_algorithm_by_its_neurons():
    assert prefixed(compose(overrides=LIF), "FedAvg") == "FedAvg (LIF)"
    assert prefixed(compose(overrides=["strategy.spiking=false"]), "FedAvg") == "FedAvg"
    assert [update_kind(compose(overrides=[*LIF, *more])) for more in ([], ["strategy.name=solo"])] == [
        "native",
        "none",
    ]


def test_later_layers_win(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("data: {clients: 3, beta: 0.1}\n")
    config = compose(path, ["data.clients=5", "data.clients=7"])
    assert (config.data.clients, config.data.beta, config.run) == (7, 0.1, Config().run)


def test_defaults_are_valid_and_documented():
    validate(Config())
    assert compose() == Config()
    assert all(item.metadata["doc"] for item, _ in FIELDS.values())


@settings(deadline=None)
@given(st.sampled_from(NUMBERS), st.data())
def test_out_of_range_names_key_value_and_bound(key, data):
    item, kind = FIELDS[key]
    low, high, above = (item.metadata[bound] for bound in ("low", "high", "above"))
    wrong = []
    if low is not None:
        wrong.append(st.integers(max_value=int(low) - 1).map(lambda v: (kind(v), f"at least {low}")))
    if above is not None:
        wrong.append(st.integers(max_value=int(above)).map(lambda v: (kind(v), f"more than {above}")))
    if high is not None:
        wrong.append(st.integers(int(high) + 1, int(high) + 10**6).map(lambda v: (kind(v), f"at most {high}")))
    assume(wrong)
    value, words = data.draw(st.one_of(wrong))
    with pytest.raises(ConfigError) as error:
        compose(overrides=[f"{key}={value}"])
    one_line(error, f"{key}={value}", words, item.metadata["doc"])


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["evaluation.curve=[8,0]"], ["evaluation.curve=[8, 0]", "0 is no length"]),
        (["evaluation.curve=[64]", "conversion.initial_potential=drip"], ["64 is longer than conversion.steps=32"]),
        (["evaluation.curve=[64]", "conversion.calibration=time_bias"], ["64 is longer than conversion.steps=32"]),
    ],
)
def test_a_length_that_cannot_be_simulated(overrides, parts):
    with pytest.raises(ConfigError) as error:
        compose(None, overrides)
    one_line(error, *parts)
    assert compose(None, ["evaluation.curve=[64,8]"]).evaluation.curve == (64, 8)


@pytest.mark.parametrize("key", [key for key in NUMBERS if FIELDS[key][1] is float])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_must_be_finite(key, value):
    section, name = key.split(".")

    def checked() -> None:
        changed = dataclasses.replace(getattr(Config(), section), **{name: value})
        validate(dataclasses.replace(Config(), **{section: changed}))

    with pytest.raises(ConfigError) as error:
        checked()
    one_line(error, f"{name}={value}", "finite")


@pytest.mark.parametrize("key", [key for key, (_, kind) in FIELDS.items() if kind not in (str, str | None)])
def test_wrong_type_names_key_value_and_kind(key):
    item, kind = FIELDS[key]
    words = {
        int: "a whole number",
        int | None: "a whole number or null",
        float: "a number",
        float | None: "a number or null",
        bool: "true or false",
        bool | None: "true, false or null",
        tuple[int, ...]: "a list of whole numbers",
        tuple[str, ...]: "a list of names",
        tuple[float, ...]: "a list of numbers",
    }
    expected = choices(kind) or (words[kind], item.metadata["doc"])
    if choices(kind) and type(None) in typing.get_args(kind):
        expected = (*expected, "null")
    with pytest.raises(ConfigError) as error:
        compose(overrides=[f"{key}=zebra"])
    one_line(error, f"{key}=zebra", *map(str, expected))


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("data.cleints=3", ["'data.cleints'", "3", "did you mean 'clients'?"]),
        ("data.zzz=3", ["'data.zzz'", "3", "known: augment, beta, binning, classes, classes_per_client"]),
        ("dta.clients=3", ["'dta'", "did you mean 'data'?"]),
        ("clients=3", ["'clients'", "3", "did you mean 'data.clients'?"]),
        ("run=3", ["run=3", "expected a section", "run.name=run"]),
        ("data.clients=2.5", ["data.clients=2.5", "a whole number"]),
        ("data.clients=null", ["data.clients=None", "a whole number"]),
        ("data.clients={a: 1}", ["data.clients={'a': 1}", "a whole number"]),
        ("data.clients.x=3", ["data.clients={'x': 3}", "a whole number"]),
        ("data.partition=dirichle", ["data.partition=dirichle", "iid, dirichlet", "did you mean 'dirichlet'?"]),
        ("training.milestones=[1,x]", ["training.milestones=[1, 'x']", "a list of whole numbers"]),
        ("training.milestones=7", ["training.milestones=7", "a list of whole numbers"]),
        ("data.clients", ["'data.clients'", "expected key=value"]),
        ("=3", ["'=3'", "expected key=value"]),
        ("run.name=[", ["'run.name=['", "not a YAML value"]),
        ("run.name=a/b", ["run.name='a/b'", "plain folder name"]),
        ("run.name=.", ["run.name='.'", "plain folder name"]),
        ("run.name=", ["run.name=", "nothing after the equals sign"]),
        ("run.seed=${run.rounds", ["run.seed=${run.rounds", "not a YAML value"]),
        ("run.name=${run.nam}", ["run.name", "run.nam"]),
        ("data.=1", ["'data.'"]),
    ],
)
def test_mistakes_on_the_command_line(override, parts):
    with pytest.raises(ConfigError) as error:
        compose(overrides=[override])
    one_line(error, *parts)


@pytest.mark.parametrize(
    "section", [Config, *(type(getattr(Config(), item.name)) for item in dataclasses.fields(Config))]
)
def test_a_section_built_in_python_answers_with_the_nearest_name(section):
    name = dataclasses.fields(section)[0].name
    with pytest.raises(ConfigError) as caught:
        section(**{f"{name}s": 1})
    assert str(caught.value) == f"{section.__name__}: unknown option '{name}s'; did you mean {name!r}?"
    with pytest.raises(TypeError, match="positional"):
        section(1)


def test_the_fast_conversion_takes_options_as_its_section_does():
    assert ConversionConfig.fast(8, thresholds="layer_max").thresholds == "layer_max"
    assert ConversionConfig.fast(steps=8, max_bytes=5).max_bytes == 5
    with pytest.raises(ConfigError, match=r"^ConversionConfig: unknown option 'stps'; did you mean 'steps'\?$"):
        ConversionConfig.fast(stps=8)
    with pytest.raises(ConfigError, match=r"^steps='8': expected a whole number"):
        ConversionConfig.fast(steps="8")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"- a\n- b\n", ["bad.yaml: expected sections such as run", "found a list"]),
        (b"data: [1\n", ["bad.yaml, line 1: nothing closes it with ]"]),
        (b"run:\n\trounds: 1\n", ["bad.yaml, line 2: a tab"]),
        (b"run:\n  rounds: 1\n rounds: 2\n", ["bad.yaml, line 3: "]),
        (b"run:\n  name: a: b\n", ["bad.yaml, line 2: a colon", "quotation marks"]),
        (b"run: {rounds: 1\ndata: {clients: 3}\n", ["bad.yaml, line 1: nothing closes it with }"]),
        (b"run:\n  name: 'a\n", ["bad.yaml, line 2: a quotation mark that nothing closes"]),
        (b"run: {name: @x}", ["bad.yaml, line 1: text that begins with @ needs quotation marks"]),
        (b"run: {rounds: 1}\n---\nrun: {rounds: 2}\n", ["bad.yaml, line 2: a second document"]),
        (b"data: {clients: 3\x00}", ["cannot be read as YAML"]),
        (b"\xff\xfe\xfa", ["cannot be read as YAML", "UTF-8"]),
        (b"data:\n  clients: 3\n  clients: 4\n", ["bad.yaml, line 3: the key 'clients' is given twice"]),
        (b"data: {clients: 3}\nrun: {}\ndata: {}\n", ["bad.yaml, line 3: the key 'data' is given twice"]),
        (b"", ["bad.yaml: it is empty", "{} for the defaults"]),
        (b"# later\n\n", ["bad.yaml: it is empty"]),
        (b"just text", ["expected sections such as run", "found just text"]),
        (b"5", ["expected sections such as run", "found 5"]),
        (b"matrix: {}", ["bad.yaml: it is a study", "snnfl compare "]),
        (b"data: 5\n", ["data=5", "expected a section"]),
        (b"data:\n", ["data=None", "expected a section"]),
        (b"1: {a: 2}\n", ["unknown section"]),
        (b"data: {1: 2}\n", ["unknown key"]),
        (b"data: {clients: many}\n", ["data.clients=many", "a whole number"]),
    ],
)
def test_mistakes_in_a_file(content, parts, tmp_path):
    """Each with the file, the line and the cause."""
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        compose(path)
    one_line(error, *parts)


def test_missing_file_names_its_neighbour(tmp_path):
    (tmp_path / "demo.yaml").touch()
    with pytest.raises(ConfigError) as error:
        compose(tmp_path / "dmeo.yaml")
    one_line(error, "dmeo.yaml: no such file", "did you mean", "demo.yaml")
    with pytest.raises(ConfigError) as error:
        compose(tmp_path / "nowhere" / "demo.yaml")
    one_line(error, "no such file")


def test_a_file_that_comes_with_snnfl_is_named_where_the_user_has_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = Path("experiments/conf/audit_digits.yaml")
    with pytest.raises(ConfigError) as error:
        compose(name)
    brought = Path(str(error.value).rpartition("snnfl brings it as ")[2])
    one_line(error, "experiments/conf/audit_digits.yaml: no such file")
    assert compose(brought).run.name == "watched"


YAML = st.text(st.sampled_from("ab1.[]{}:,'#&*!|>%@?-= $~"), max_size=14)  # the characters that mean something


def explanation(read, *arguments):
    """The message of the ConfigError that the call raised, or "" where it understood its arguments."""
    try:
        read(*arguments)
    except ConfigError as error:
        return str(error)
    return ""


@settings(deadline=None)
@given(YAML)
def test_any_override_is_understood_or_explained(text):
    assert len(explanation(compose, None, [text]).splitlines()) <= 1


@settings(deadline=None)
@given(st.sampled_from(sorted(set(FIELDS) - {"training.milestones"})), YAML)
def test_any_value_is_understood_or_explained(key, text):
    message = explanation(compose, None, [f"{key}={text}"])
    assert len(message.splitlines()) <= 1
    assert not message or key in message


@settings(deadline=None)
@given(st.sampled_from(list(FIELDS)), st.none() | st.booleans() | st.integers() | st.floats() | TEXT)
def test_any_run_config_value_is_understood_or_explained(key, value):
    assume("${" not in str(value))
    message = explanation(unflatten, {key: value})
    assert len(message.splitlines()) <= 1
    assert not message or key in message


@pytest.mark.parametrize(
    ("run_config", "parts"),
    [
        ({"run.name": ".."}, ["run.name='..'", "plain folder name"]),
        ({"training.milestones": '{"a": 1}'}, ["training.milestones={'a': 1}", "a list of whole numbers"]),
        ({"run.seed": "${"}, ["run.seed=${", "no interpolation"]),
        ({"[x": 1}, ["[x"]),
        ({"data.clients": "1\n2"}, ["data.clients=", "a whole number"]),
        ({"clients": 3}, ["'clients'", "data.clients"]),
    ],
)
def test_mistakes_in_a_run_config(run_config, parts):
    with pytest.raises(ConfigError) as error:
        unflatten(run_config)
    one_line(error, *parts)


def test_text_may_be_null():
    config = compose(overrides=["run.name='null'"])
    assert unflatten(flatten(config)) == config


def test_unflatten_explains_unknown_keys():
    with pytest.raises(ConfigError) as error:
        unflatten({"training.epoch": 3})
    one_line(error, "training.epoch", "did you mean 'epochs'?")
    with pytest.raises(ConfigError) as error:
        unflatten({"lr": 0.1})
    one_line(error, "'lr'", "0.1")


def test_unflatten_keeps_the_defaults_of_what_is_absent():
    assert unflatten({}) == Config()
    assert unflatten({"data.clients": 3}).data.clients == 3


def test_nearest_names_one_or_all():
    assert nearest("fedavgg", ["fedavg", "fedprox"]) == "; did you mean 'fedavg'?"
    assert nearest("zzz", ["b", "a"]) == "; known: a, b"
    assert nearest("zzz", ["b", "a"], listing=False) == ""


def test_the_yaml_is_plain():
    loaded = OmegaConf.to_container(OmegaConf.create(to_yaml(Config())))
    assert set(loaded) == {field.name for field in dataclasses.fields(Config)}


def test_an_empty_mapping_stands_for_the_defaults(tmp_path):
    (tmp_path / "all.yaml").write_text("{}\n")
    assert compose(tmp_path / "all.yaml") == Config()


def test_what_is_no_file_is_recognised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    for name, said in (
        ("run", "run: it is a folder; did you mean run/config.yaml?"),
        ("other", "other: it is a folder; name a YAML file"),
        ("data.clients=5", "data.clients=5: options come after the file, as in FILE.yaml data.clients=5"),
    ):
        with pytest.raises(ConfigError) as error:
            compose(name)
        assert str(error.value) == said


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("data.alpha=0.5", "data.beta"),
        ("alpha=0.5", "data.beta"),
        ("lr=0.1", "training.learning_rate"),
        ("training.lr=0.1", "training.learning_rate"),
        ("data.dataset=mnist", "data.source"),
        ("strategy.algorithm=fedavg", "strategy.name"),
        ("conversion.T=8", "conversion.steps"),
        ("data.rounds=3", "run.rounds"),
        ("run.clients=3", "data.clients"),
        ("conversion.timesteps=3", "steps"),
    ],
)
def test_the_fields_words_and_an_option_of_another_section_are_recognised(given, meant):
    with pytest.raises(ConfigError) as error:
        compose(None, [given])
    one_line(error, f"did you mean {meant!r}?")


VALUES = [
    None, True, False, 0, 1, 2, 4, 8, -3, 2**60, 0.5, 1e-3, "a", "", "1", "true", "null", "???", "${oc.env:HOME}",
    "\\${x}", [], [1, 2], (1, 2), [0.5, 1], ["a"], ["${x}"], [None], [[1]], {}, {"a": 1}, Path("a"),
]  # fmt: skip


@pytest.mark.parametrize("key", FIELDS)
def test_the_short_way_merges_as_omegaconf_does(key):
    section, _, name = key.partition(".")
    item, kind = FIELDS[key]
    schema = merging._schema()[section]  # that of all sections takes ten times as long to copy
    taken = []
    for value in [item.default, *choices(kind), *VALUES]:
        layers = [{section: {name: item.default}}, {section: {name: value}}]
        try:
            short = merging._plain(layers)
        except ConfigError:
            continue  # of the section that checks itself, which OmegaConf's way builds, too
        if short is not None:
            whole = OmegaConf.to_object(OmegaConf.merge(schema, *(layer[section] for layer in layers)))
            assert repr(short) == repr(dataclasses.replace(Config(), **{section: whole}))
            taken.append(value)
    assert item.default in taken


def test_a_configuration_that_python_made_of_lists_is_written_as_well():
    of_lists, of_tuples = (Config(training=TrainingConfig(milestones=kind([1, 2]))) for kind in (list, tuple))
    assert to_yaml(of_lists) == to_yaml(of_tuples)


def test_what_a_later_layer_replaces_is_checked_all_the_same():
    with pytest.raises(ConfigError, match=r"data\.clients=many"):
        compose({"data.clients": "many"}, ["data.clients=5"])
