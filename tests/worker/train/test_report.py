import subprocess
import sys

from worker.train.report import StepValues, write_results

SCRIPT = """
import os, sys
from models.spec import Stopped
from worker.train.report import Channel
channel = Channel()
print("noise from Python")
os.system("echo noise from a child")
channel.say(Stopped(step=1))
channel.close()
"""


def test_only_messages_reach_standard_output():
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout.read() == b'{"type":"stopped","step":1}\n'
    assert child.returncode == 0


def test_results_in_the_columns_of_openai(tmp_path):
    path = tmp_path / "results.csv"
    write_results(
        path,
        [
            StepValues(1, {"train_loss": 2.5, "train_mean_token_accuracy": 0.5, "grad_norm": 1.0}),
            StepValues(2, {"train_loss": 1.5, "train_mean_token_accuracy": 0.75}),
            StepValues(2, {"valid_loss": 2.0, "valid_mean_token_accuracy": 0.25}),
        ],
    )
    assert path.read_text().splitlines() == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy",
        "1,2.5,0.5,,",
        "2,1.5,0.75,2.0,0.25",
    ]
