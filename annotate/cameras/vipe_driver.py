"""Runs inside ViPE's own environment, one per GPU, and imports nothing of ours: `python vipe_driver.py PRESET [OVERRIDE ...]`.

One JSON object per line. In: {id, image_dir, out, fps}. Out: ready, done, error, fatal. Standard output carries the protocol
only; whatever the libraries print goes to standard error. `--check` composes the configuration, which needs no CUDA, and prints it.
Exit status 3: no CUDA.
"""

# pyright: reportMissingImports=false
import json
import os
import queue
import sys
import threading
import time
import traceback

NO_CUDA = 3


def main(arguments):
    say = _protocol()
    check = "--check" in arguments
    preset, *overrides = [argument for argument in arguments if argument != "--check"]
    try:
        config = _config(preset, overrides)
    except Exception as error:
        say(event="fatal", kind="config", msg=str(error))
        return 2
    if check:
        say(event="checked", config=_plain(config))
        return 0
    lines = _lines()
    try:
        pipeline, facts = _pipeline(config)
    except Exception as error:
        kind = "no_cuda" if isinstance(error, NoCuda) else "weights" if _is_download(error) else "load"
        say(event="fatal", kind=kind, msg=str(error), trace=traceback.format_exc())
        return NO_CUDA if kind == "no_cuda" else 2
    say(event="ready", **facts)
    while True:
        line = lines.get()
        _serve(pipeline, json.loads(line), say)


class NoCuda(RuntimeError):
    pass


def _protocol():
    """The real standard output for us alone; file descriptor 1 becomes standard error for everybody else."""
    ours = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(**message):
        print(json.dumps(message), file=ours, flush=True)

    return say


def _lines():
    """Requests, read aside: when the owner dies, standard input ends and so do we, even in the middle of a clip."""
    lines = queue.Queue()

    def read():
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _config(preset, overrides):
    from vipe.config import parse_typed_config

    fixed = ["pipeline.output.save_artifacts=true", "pipeline.output.save_viz=false"]
    stream = ["streams=frame_dir_stream", "streams.base_path=."]
    return parse_typed_config("default", hydra_args=[f"pipeline={preset}", *stream, *fixed, *overrides])


def _plain(config):
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config.to_dictconfig(), resolve=True)


def _pipeline(config):
    import torch

    if not torch.cuda.is_available():
        raise NoCuda("ViPE needs a CUDA device, torch sees none")
    import importlib.metadata

    from vipe.pipeline import make_pipeline

    version = importlib.metadata.version("nvidia-vipe")
    return make_pipeline(config.pipeline), {
        "vipe": version,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(0),
    }


def _serve(pipeline, request, say):
    import torch

    started = time.monotonic()
    torch.cuda.reset_peak_memory_stats()
    try:
        _run(pipeline, request)
    except Exception as error:
        out_of_memory = isinstance(error, torch.cuda.OutOfMemoryError)
        kind = "oom" if out_of_memory else "weights" if _is_download(error) else type(error).__name__
        say(
            event="error",
            id=request["id"],
            kind=kind,
            msg=str(error),
            trace=traceback.format_exc(),
            retry=out_of_memory,
        )
        return
    peak = torch.cuda.max_memory_allocated()
    say(event="done", id=request["id"], wall_s=time.monotonic() - started, peak_mem=peak)


def _is_download(error):
    """Weights that were to be fetched and could not: urllib's, requests' and the hub's errors, by the names in their ancestry."""
    names = {
        "URLError",
        "RequestException",
        "HTTPError",
        "HfHubHTTPError",
        "LocalEntryNotFoundError",
        "OfflineModeIsEnabled",
    }
    while error is not None:
        if names.intersection(kind.__name__ for kind in type(error).__mro__):
            return True
        error = error.__cause__ or error.__context__
    return False


def _run(pipeline, request):
    import pathlib

    from vipe.streams.base import ProcessedVideoStream
    from vipe.streams.frame_dir_stream import FrameDirStream

    class Frames(FrameDirStream):
        """A folder of images knows no rate (ViPE assumes 30), and is named for its clip."""

        def fps(self):
            return float(request["fps"])

        def name(self):
            return request["id"]

    pipeline.out_path = pathlib.Path(request["out"])
    stream = ProcessedVideoStream(Frames(pathlib.Path(request["image_dir"])), [])
    pipeline.run(stream.cache(desc="frames"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
