"""`brickreel web`: a page on this machine for trying a model, with gradio (the optional part `brickreel[web]`)."""

import importlib.util
import logging
import tempfile
import threading
import uuid
from pathlib import Path
from typing import Any

import click

from brickreel.evaluation import generate
from brickreel.running import guarded, set_up_logging

logger = logging.getLogger("brickreel")


def page(pipeline: Any, settings: dict[str, Any], folder: Path, name: str) -> Any:
    """The page as gradio Blocks; videos are written to `folder`, one at a time."""
    import gradio

    one_at_a_time = threading.Lock()

    def answer(
        prompt: str, picture: str | None, seed: float, frames: float, steps: float, guidance: float, fps: float
    ) -> str:
        if not prompt.strip():
            raise gradio.Error("Write a prompt first.", print_exception=False)
        shown = {
            "num_frames": int(frames),
            "num_inference_steps": int(steps),
            "guidance_scale": guidance,
            "fps": fps,
        }
        changed = {name: value for name, value in shown.items() if value != settings[name]}
        asked = generate.suited(settings, changed, continues=bool(picture))
        path = folder / f"{uuid.uuid4().hex}.mp4"
        with one_at_a_time:
            try:
                generate.make(pipeline, prompt.strip(), int(seed), path, asked, [Path(picture)] if picture else [])
            except ValueError as error:
                raise gradio.Error(str(error), print_exception=False) from error
        return str(path)

    with gradio.Blocks(title=f"brickreel: {name}", analytics_enabled=False) as blocks:
        gradio.Markdown(f"## {name}\nThe same prompt and seed always give the same video.")
        with gradio.Row():
            with gradio.Column():
                prompt = gradio.Textbox(label="Prompt", lines=3, autofocus=True)
                picture = gradio.Image(label="First frame (optional)", type="filepath", sources=["upload"], height=160)
                with gradio.Row():
                    seed = gradio.Number(label="Seed", value=0, precision=0, minimum=0)
                    frames = gradio.Number(label="Poses", value=settings["num_frames"], precision=0, minimum=1)
                    fps = gradio.Number(label="Poses per second", value=settings["fps"], minimum=1)
                with gradio.Row():
                    steps = gradio.Slider(1, 250, value=settings["num_inference_steps"], step=1, label="Steps", scale=2)
                    guidance = gradio.Slider(1, 15, value=settings["guidance_scale"], step=0.5, label="Guidance")
                button = gradio.Button("Generate", variant="primary")
            shown = gradio.Video(label="Video", autoplay=True, loop=True)
        inputs = [prompt, picture, seed, frames, steps, guidance, fps]
        button.click(answer, inputs, shown, api_name="generate")
        prompt.submit(answer, inputs, shown, api_name=False)
    return blocks


@click.command(name="web")
@click.option("--model", required=True, help="Folder that `brickreel export` wrote, or builtin:tiny.")
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(model: str, port: int, device: str, debug: bool) -> None:
    """Try a model in the browser.

    The page is served to this machine alone. From another one: ssh -L 7860:localhost:7860 NODE, then open
    http://localhost:7860.
    """
    set_up_logging()

    def call() -> None:
        if importlib.util.find_spec("gradio") is None:
            raise ValueError("the page needs gradio: pip install 'brickreel[web]'")
        with tempfile.TemporaryDirectory(prefix="brickreel-web-") as folder:
            pipeline = generate.load_pipeline(model, device)
            blocks = page(pipeline, generate.defaults(model), Path(folder), Path(model).name)
            logger.info("web: http://127.0.0.1:%d, until Ctrl-C", port)
            blocks.launch(server_name="127.0.0.1", server_port=port, share=False, quiet=True, allowed_paths=[folder])

    guarded("web", debug, call)
