"""The job `rate`: a few steps at each of several learning rates over the rows of a run, before it is started."""

from __future__ import annotations

from qlora_studio.core import events as ev
from qlora_studio.core.jobs import RateRequest
from qlora_studio.data.sets.prepare import Stopped
from qlora_studio.engine.accelerator.choose import choose_accelerator
from qlora_studio.engine.loaded import load_for_training
from qlora_studio.engine.objectives.registry import find_objective
from qlora_studio.engine.rate_search import RateSearch
from qlora_studio.engine.setup import Setup
from qlora_studio.engine.tokenizer import load_tokenizer
from qlora_studio.planner.rates import rates_to_try
from qlora_studio.worker.context import Context
from qlora_studio.worker.plans import plan_run
from qlora_studio.worker.templates import vet_once
from qlora_studio.worker.train import prepare_rows, settle_rate


def run(context: Context) -> ev.Event:
    choose_accelerator().prepare()
    request, config = context.request(RateRequest), context.config()
    find_objective(config.optim.objective)
    base = context.fetch_base(config)
    vet_once(context, base.folder, config.model.template)
    context.phase("tokenising the rows")
    tokenizer = load_tokenizer(base.folder, config.model.template)
    try:
        rows = prepare_rows(context, config, tokenizer)
    except Stopped:
        return ev.Stopped()
    planned = plan_run(context, config, base, rows.train)
    context.phase("loading the model in 4 bits")
    loaded = load_for_training(base.folder, config, planned.plan, planned.again)
    setup = Setup(
        config=settle_rate(context, config, planned.shape),
        plan=loaded.plan,
        accelerator=loaded.device.accelerator,
        model=loaded.model,
        train=rows.train.examples,
        held_out=rows.held_out.examples,
        folder=context.folder.path,
        base=base.label,
        objective=config.optim.objective,
    )
    context.phase("trying learning rates")
    search = RateSearch(
        setup,
        request.steps,
        lambda done, total: context.emit(ev.Advanced(done=done, total=total, unit="steps")),
        lambda: context.pending_request() != "",
    )
    report = search.run(rates_to_try(config, planned.shape))
    return ev.Stopped() if report is None else ev.Finished(report=report)
