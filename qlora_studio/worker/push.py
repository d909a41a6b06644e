"""The job `push`: a finished export is handed on to a program of this machine or to the hub. The export stays as it is."""

from __future__ import annotations

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import PushReport, PushRequest
from qlora_studio.data.sets.prepare import Stopped
from qlora_studio.hub import upload_folder
from qlora_studio.local_programs import copy_to_lm_studio, create_in_ollama
from qlora_studio.worker.context import Context


def run(context: Context) -> ev.Event:
    request = context.request(PushRequest)
    if not request.export.is_dir() or not any(request.export.iterdir()):
        raise StudioError("There is no export in this folder.", "Name the folder of one.", where=str(request.export))

    def advanced(done: int, total: int) -> None:
        context.emit(ev.Advanced(done=done, total=total, unit="bytes"))
        if context.pending_request() == "stop":
            raise Stopped

    try:
        if request.to == "lmstudio":
            context.phase("copying into LM Studio's folder")
            place = str(copy_to_lm_studio(request.export, request.name, advanced))
        elif request.to == "ollama":
            context.phase("Ollama makes a model of it")
            if not create_in_ollama(request.export, request.name, lambda: context.pending_request() == "stop"):
                return ev.Stopped()
            place = f"ollama run {request.name}"
        else:
            context.phase("uploading to the hub")
            place = upload_folder(request.export, request.name, public=request.public)
    except Stopped:
        return ev.Stopped()
    return ev.Finished(report=PushReport(place=place))
