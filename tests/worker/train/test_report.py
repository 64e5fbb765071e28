import subprocess
import sys

from worker.train.report import StepValues, write_results

SILENT = """
from time import sleep
from worker.train import report
report.ALIVE_SECONDS = 0.2
channel = report.Channel("ftjob-1", report.Pipe())
for _ in range(50):
    channel.stay_alive()
    sleep(0.01)
"""
SCRIPT = """
import os, sys
from models.spec import Stopped
from worker.train.report import Channel, Pipe
channel = Channel("ftjob-1", Pipe())
print("noise from Python")
os.system("echo noise from a child")
channel.say(Stopped(step=1))
"""

WISHES = """
from models.spec import Stopped
from worker.train.report import Channel, Pipe
pipe = Pipe()
while pipe.next_folder(wait=True).name != "last":
    pass
assert pipe.wish_for("a") == "stop"
assert pipe.wish_for("b") is pipe.wish_for("last") is None
for order in ("a", "b", "last"):
    Channel(order, pipe).say(Stopped(step=1))
pipe._hear("drop", "a")  # as a supervisor says once it has heard the end
assert not pipe._wishes
"""


def said(script, *, told=b""):
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        child.stdin.write(told)
        child.stdin.flush()
        output = child.stdout.read()
    assert child.returncode == 0
    return output


def test_only_messages_reach_standard_output():
    message = b'{"type":"stopped","step":1}'
    assert said(SCRIPT) == b'{"order":"ftjob-1","message":%b}\n' % message


def test_of_orders_that_have_ended_or_never_began_no_wish_is_kept():
    told = b"drop b\ntrain /w/a\npause a\ntrain /w/b\nstop a\ndrop c\ntrain /w/last\n"
    assert said(WISHES, told=told).count(b"stopped") == 3


def test_long_silent_work_says_that_it_goes_on():
    lines = said(SILENT).splitlines()
    assert set(lines) == {b'{"order":"ftjob-1","message":{"type":"alive"}}'}
    assert len(lines) <= 3


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
