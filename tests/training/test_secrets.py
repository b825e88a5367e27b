"""A token of the Hub is used, and written nowhere."""

import copy
import dataclasses
import pickle

import torch
from helpers.material import write_material
from helpers.tiny import tiny_config

import run_unlearn

TOKEN = "hf_" + "Secret" * 5


def test_no_file_of_a_run_holds_the_token(tmp_path):
    flags = [*write_material(tmp_path), "--output_dir", str(tmp_path / "out"), "--do_train", "--do_eval"]
    flags += ["--max_steps", "1", "--save_strategy", "steps", "--save_steps", "1", "--hub_token", TOKEN]
    results = run_unlearn.run([*flags, "--memorize_first", "--memorize_epochs", "1"])
    assert TOKEN not in str(results)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"training_args.bin", "results.json", "trainer_state.json"} <= {path.name for path in files}
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


def test_arguments_keep_the_token_where_they_are_copied_and_lose_nothing_else_where_they_are_pickled(tmp_path):
    config = tiny_config(tmp_path, hub_token=TOKEN, method="npo", learning_rate=3e-4)
    for copied in (copy.copy(config), copy.deepcopy(config), dataclasses.replace(config)):
        assert copied is not config and copied.hub_token == TOKEN and copied.method == "npo"
    torch.save(config, tmp_path / "args.bin")
    for read in (pickle.loads(pickle.dumps(config)), torch.load(tmp_path / "args.bin", weights_only=False)):
        assert read.hub_token is None
        assert read.to_dict() | {"hub_token": 0} == config.to_dict() | {"hub_token": 0}
    assert config.hub_token == TOKEN
