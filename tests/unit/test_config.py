"""Config: ranges in the words of the flag, JSON that comes back, layouts that divide."""

from dataclasses import replace
from pathlib import Path

import pytest

from samovar import config as configs
from samovar.config import Config, DataConfig, ModelConfig, OptimConfig, SamConfig
from samovar.train.resume import fingerprint


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Config(sam=SamConfig(rho=-0.1)), "--sam.rho -0.1"),
        (Config(sam=SamConfig(rho=float("nan"))), "--sam.rho nan"),
        (Config(data=DataConfig(fraction=0)), "--data.fraction 0"),
        (Config(data=DataConfig(fraction=1.5)), "--data.fraction 1.5"),
        (Config(data=DataConfig(batch_size=0)), "--data.batch-size 0"),
        (Config(epochs=0), "--epochs 0 with --steps 0"),
        (Config(optim=OptimConfig(lr=-1)), "--optim.lr -1"),
        (Config(sam=SamConfig(adaptive=True, eta=0)), "--sam.eta 0"),
        (Config(sam=SamConfig(m=8, shared_ascent=True)), "--sam.shared-ascent"),
        (Config(model=ModelConfig(std=(0.0,))), "--model.std"),
        (Config(label_smoothing=2), "--label-smoothing 2"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_the_words_of_its_flag(config: Config, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace(".", r"\.")) as caught:
        configs.validate(config)
    assert "\n" not in str(caught.value)


def test_the_default_config_is_valid() -> None:
    configs.validate(Config())


def test_m_that_does_not_divide_the_ranks_batch_names_a_divisor_near_it() -> None:
    config = Config(data=DataConfig(batch_size=96), sam=SamConfig(rho=0.1, m=32))
    configs.validate_layout(config, 1)
    with pytest.raises(
        ValueError, match=r"--sam.m 32 does not divide the 48 images of a rank; pick a divisor such as 24"
    ):
        configs.validate_layout(config, 2)


def test_m_is_of_no_account_without_sam() -> None:
    configs.validate_layout(Config(data=DataConfig(batch_size=10), sam=SamConfig(rho=0.0, m=32)), 1)


def test_a_batch_that_does_not_divide_over_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match="does not divide over 3 ranks"):
        configs.validate_layout(Config(data=DataConfig(batch_size=128)), 3)


def test_unknown_settings_and_wrong_types_in_json_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown setting 'rhoo'"):
        configs.from_dict({"sam": {"rhoo": 1}})
    with pytest.raises(ValueError, match="setting 'rho' is 'big'"):
        configs.from_dict({"sam": {"rho": "big"}})
    with pytest.raises(ValueError, match="setting 'crop' is 'zoom'; allowed: none"):
        configs.from_dict({"data": {"crop": "zoom"}})


def test_a_config_file_that_is_not_one_is_refused(tmp_path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[1, 2")
    with pytest.raises(ValueError, match="cannot read a config"):
        configs.load(path)
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="holds no config"):
        configs.load(path)


def test_a_resumed_run_recognises_its_checkpoints() -> None:
    config = Config(epochs=300, data=DataConfig(mixup=1))  # whole numbers, where JSON gives back floats
    assert fingerprint(configs.from_dict(configs.to_dict(config))) == fingerprint(config)
    assert fingerprint(replace(config, seed=1)) != fingerprint(config)
    assert fingerprint(replace(config, output=Path("elsewhere"))) == fingerprint(config)


def test_steps_follow_from_epochs_unless_given() -> None:
    config = Config(epochs=2, data=DataConfig(batch_size=100))
    assert configs.num_steps(config, 1050) == 21
    assert configs.num_steps(replace(config, steps=7), 1050) == 7
