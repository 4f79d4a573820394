"""The launcher's own life: interrupted, killed, started again, started twice, and jobs that can never start."""

import signal
import time

import pytest

from slurm.site import finish, wait
from training import project


def running(site):
    """Start training and wait for its first step."""
    launcher = site.launch("train")
    job_id = site.job_id()
    wait("a step", 120, lambda: site.last_step() > 0)
    return launcher, job_id


def test_an_interrupted_launcher_cancels_its_job(site):
    project.make(site.folder, max_steps=100_000)
    launcher, job_id = running(site)
    launcher.send_signal(signal.SIGTERM)
    output = launcher.communicate(timeout=30)[0]
    assert launcher.returncode == 128 + signal.SIGTERM
    assert f"cancelled Slurm job {job_id}" in output
    wait("an empty queue", 60, lambda: not site.cluster.ask("squeue", "-h"))


def test_an_interrupted_launcher_leaves_its_job_where_the_site_says_so(site):
    project.make(site.folder, max_steps=100_000)
    launcher = site.launch("train", BRICKREEL_ON_INTERRUPT="leave")
    job_id = site.job_id()
    wait("a step", 120, lambda: site.last_step() > 0)
    launcher.send_signal(signal.SIGTERM)
    output = launcher.communicate(timeout=30)[0]
    assert launcher.returncode == 128 + signal.SIGTERM
    assert f"Slurm job {job_id} runs on" in output
    before = site.last_step()
    wait("more steps", 60, lambda: site.last_step() > before)


def test_a_killed_launcher_leaves_its_job_to_the_next_one(site):
    project.make(site.folder, max_steps=40, checkpoint_every=10)
    launcher, job_id = running(site)
    launcher.kill()
    launcher.wait()
    output = finish(site.launch("train"))
    assert f"following Slurm job {job_id}" in output
    assert site.last_step() == 40
    assert (
        len(site.cluster.ask("sacct", "-nX", "-S", "now-1hours", "--name=train-small", "-j", job_id).splitlines()) == 1
    )


def test_a_second_launcher_is_refused_with_a_sentence(site):
    project.make(site.folder, max_steps=100_000)
    launcher, _ = running(site)
    second = site.launch("train")
    output = second.communicate(timeout=60)[0]
    assert second.returncode == 1
    assert f"already being launched by process {launcher.pid}" in output
    assert "Traceback" not in output


def test_a_job_with_other_settings_is_not_followed(site):
    project.make(site.folder, max_steps=100_000)
    launcher, job_id = running(site)
    launcher.kill()
    launcher.wait()
    text = (site.folder / "config.json").read_text()
    (site.folder / "config.json").write_text(text.replace("100000", "99999"))
    second = site.launch("train")
    output = second.communicate(timeout=60)[0]
    assert second.returncode == 1
    assert f"Slurm job {job_id} of this run is still there, with other settings" in output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--partition", "absent"], "there is no partition 'absent'"),
        (["--gres", "gpu:9"], "no node of the partition has that many GPUs"),
        (["--account", "nobody"], "the account does not exist or may not use this partition"),
        (["--partition", "short", "--gres", "", "--runtime", "30"], "longer than the partition allows"),
    ],
)
def test_a_job_that_can_never_start_is_one_sentence(site, words, sentence):
    project.make(site.folder)
    launcher = site.launch("train", 2, 2, *words)
    output = launcher.communicate(timeout=60)[0]
    assert launcher.returncode == 1
    assert sentence in output
    assert "Traceback" not in output
    wait("an empty queue", 30, lambda: not site.cluster.ask("squeue", "-h"))


def test_what_may_be_for_nodes_that_are_down_and_holds_are_told_and_waited_for(site):
    project.make(site.folder)
    launcher = site.launch("train", 3, 2, "--log", "launcher.log", BRICKREEL_POLL_S="1")
    log = site.folder / "launcher.log"
    wait("a word on nodes", 60, lambda: log.is_file() and "than are up now: lower `nodes`" in log.read_text())
    job_id = site.job_id()
    site.cluster.ask("scontrol", "hold", job_id)
    wait(
        "a word on the hold",
        60,
        lambda: f"scontrol release {job_id}" in log.read_text() or "holds it" in log.read_text(),
    )
    time.sleep(15)  # longer than what can never start is waited for
    assert site.state(job_id) == "PENDING"
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 128 + signal.SIGTERM
    assert site.state(job_id) == "CANCELLED"


def test_a_launcher_that_nohup_started_outlives_the_terminal(site):
    project.make(site.folder, max_steps=40, checkpoint_every=10)
    launcher = site.start("nohup", *site.launch_words("train"))
    site.job_id()
    launcher.send_signal(signal.SIGHUP)
    finish(launcher)
    assert site.last_step() == 40
