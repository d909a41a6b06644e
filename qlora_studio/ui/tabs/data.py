"""The Data page: open rows, see them as conversations and tokens, import them, choose what the next run learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from qlora_studio.ui import fields
from qlora_studio.ui.server.sync import Page, Scene, Slot, Updates, slot
from qlora_studio.ui.server.view import OpenedSource, View
from qlora_studio.ui.server.workspace import Workspace
from qlora_studio.ui.tabs import data_form, import_rows
from qlora_studio.ui.tabs import deletion as deletions
from qlora_studio.ui.tabs.data_form import PARTS, WEIGHTS, MixtureForm, SourceForm
from qlora_studio.ui.tabs.deletion import Deletable, Deletion
from qlora_studio.ui.tabs.import_rows import ImportOptions
from qlora_studio.ui.views import data as view
from qlora_studio.ui.views import tokens as token_view
from qlora_studio.ui.views.html import Html, error_card, join, page_head, plural


@dataclass(slots=True)
class DataTab:
    """The controls that others wire."""

    source: SourceForm
    mixture: MixtureForm
    status: gr.HTML
    rows: gr.HTML
    tokens: gr.HTML
    count: gr.Button
    findings: gr.HTML
    accept: gr.CheckboxGroup
    remedies: gr.CheckboxGroup
    clean: gr.Button
    sets: gr.HTML
    deletion: Deletion
    import_bar: gr.Row
    import_name: gr.HTML
    import_button: gr.Button


def build(workspace: Workspace) -> DataTab:
    gr.HTML(page_head("Data", "Rows become conversations. You see what the model will learn before it does."))
    with gr.Row():
        with gr.Column(scale=4, min_width=310):
            source = data_form.build_source(workspace)
        with gr.Column(scale=8, min_width=330):
            status = gr.HTML(elem_id="data-status")
            with gr.Tabs(elem_id="data-parts"):
                with gr.Tab("Rows", id="rows", elem_id="part-rows"):
                    rows = gr.HTML(elem_id="data-rows")
                with gr.Tab("Tokens", id="tokens", elem_id="part-tokens"):
                    tokens = gr.HTML(elem_id="data-tokens")
                    count = gr.Button("Count the tokens", size="sm", elem_id="data-count")
                with gr.Tab("Findings", id="findings", elem_id="part-findings"):
                    findings = gr.HTML(elem_id="data-findings")
                    remedies = _ticks(
                        "Remedies", "Each changes the imported set, never your file, and the set remembers it.",
                        "data-remedies",
                    )  # fmt: skip
                    clean = gr.Button("Clean the dataset", size="sm", visible=False, elem_id="data-clean")
                    accept = _ticks(
                        "Train in spite of these", str(fields.field_info("data.accepted").description), "data-accepted"
                    )
                with gr.Tab("Imported sets", id="sets", elem_id="part-sets"):
                    sets = gr.HTML(elem_id="data-sets")
                    deletion = deletions.build(SETS, "set")
            mixture = data_form.build_mixture(workspace)
    with gr.Row(visible=False, elem_id="import-bar", elem_classes="qs-action-bar") as import_bar:
        import_name = gr.HTML(elem_id="import-name", min_width=160)
        import_button = gr.Button("Import these rows", variant="primary", elem_id="data-import", min_width=160)
    return DataTab(
        source, mixture, status, rows, tokens, count, findings, accept, remedies, clean, sets, deletion, import_bar,
        import_name, import_button,
    )  # fmt: skip


def slots(tab: DataTab) -> list[Slot]:
    """The page as draft and tab have it, and the token job as it goes."""
    source, mixture = tab.source, tab.mixture
    return [
        Slot((tab.status, tab.rows), lambda scene: _shown(scene, tab), _data_mark),
        slot(tab.sets, lambda scene: view.sets_table(list(scene.world.datasets.values()), _chosen(scene)), _data_mark),
        Slot((tab.import_bar, tab.import_name, tab.import_button), lambda scene: _import_bar(scene, tab), _opened_mark),
        Slot(
            (source.format, source.name, source.hub, source.mapping, *source.parts),
            lambda scene: _source(scene, source),
            _opened_mark,
        ),
        Slot(
            (mixture.chosen, *mixture.weights, mixture.mix_by),
            lambda scene: _mixture(scene, mixture),
            _data_mark,
            confirmed=False,
        ),
        *deletions.slots(tab.deletion),
        slot(tab.tokens, _tokens),
        slot(tab.count, _count_button),
        Slot(
            (tab.findings, tab.accept, tab.remedies, tab.clean),
            lambda scene: _findings(scene, tab),
            _data_mark,
            confirmed=False,
        ),
    ]


def wire(page: Page, tab: DataTab) -> None:
    """Connects the page's controls; mix by and evaluation share are settings like those of the Train page."""
    workspace, source, mixture = page.workspace, tab.source, tab.mixture

    def show(view_: View, typed: str | None) -> None:
        import_rows.show_source(workspace, view_, typed)

    def bring_in(view_: View, *values: Any) -> Updates:
        given: list[Any] = ["" if value is None else value for value in values]
        options = ImportOptions(*given)
        done = import_rows.import_rows(workspace, view_, options)
        return {source.file: None, source.path: "", source.name: ""} if done else {}

    def accept(view_: View, names: list[str]) -> None:
        workspace.draft.change({"data.accepted": names})

    page.on(source.file.upload, show, [source.file], also=[source.path])
    page.on(source.file.clear, lambda view_: show(view_, None))
    page.on(source.path.submit, show, [source.path])
    page.on(source.format.input, lambda view_, format: import_rows.read_as(workspace, view_, format), [source.format])
    for part in source.parts:
        page.on(part.input, lambda view_, *mapped: import_rows.map_columns(workspace, view_, mapped), source.parts)
    page.on(tab.import_button.click, bring_in, source.options, also=[source.file, source.path])
    page.on(source.demo.click, lambda view_: import_rows.import_demo(workspace, view_))
    page.on(mixture.chosen.input, lambda view_, names: import_rows.choose_sets(workspace, names), [mixture.chosen])
    for weight in mixture.weights:
        for event in (weight.submit, weight.blur):
            page.on(event, lambda view_, *typed: import_rows.weigh_sets(workspace, typed), mixture.weights)
    deletions.wire(page, tab.deletion)
    page.on(tab.count.click, lambda view_: workspace.count_tokens())
    page.on(tab.clean.click, lambda view_, names: import_rows.clean_sets(workspace, names), [tab.remedies])
    page.on(tab.accept.input, accept, [tab.accept])


def _data_mark(scene: Scene) -> object:
    """Changes whenever what is shown of data might."""
    sets = [(report.name, report.rows, report.sha256) for report in scene.world.datasets.values()]
    draft, tokens = scene.workspace.draft, scene.workspace.tokens
    return _opened_mark(scene), draft.version, tokens.version, sets


def _opened_mark(scene: Scene) -> object:
    opened = scene.view.opened
    return opened and (opened.source, opened.format, dict(opened.columns), opened.refused, opened.guess)


def _chosen(scene: Scene) -> list[str]:
    return [report.name for report in scene.workspace.chosen_sets()]


def _shown(scene: Scene, tab: DataTab) -> Updates:
    """What is open and not imported, else the chosen sets, else an invitation."""
    status, rows = _file(scene, scene.view.opened) if scene.view.opened else _sets(scene)
    return {tab.status: status, tab.rows: rows}


def _file(scene: Scene, opened: OpenedSource) -> tuple[Html, Html]:
    name = opened.source if opened.hub else Path(opened.source).name
    refused = error_card(opened.refused, f"{name} cannot be imported like this") if opened.refused else Html("")
    if opened.hub:
        return join((refused, view.hub_waits(opened.source))), Html("")
    if opened.guess is None:
        return join((refused, view.columns_found(opened.names))), Html("")
    titles = {preset.name: preset.title for preset in scene.workspace.studio.presets.family("format")}
    shown = join((refused, view.guess_line(opened.guess, titles), view.problems_card(opened.problems)))
    return shown, view.conversations_list(opened.conversations)


def _sets(scene: Scene) -> tuple[Html, Html]:
    """The chosen sets in figures and the first rows of the first of them."""
    workspace = scene.workspace
    chosen = workspace.chosen_sets()
    if not chosen:
        return view.nothing_imported(), Html("")
    figures = view.report_tiles(chosen, workspace.counted(), workspace.draft["data.eval_share"])
    notes = join(view.left_over(report) for report in chosen)
    rows = workspace.studio.data.conversations(chosen[0].name, import_rows.ROWS)
    return join((figures, notes)), view.conversations_list(rows)


def _import_bar(scene: Scene, tab: DataTab) -> Updates:
    opened = scene.view.opened
    return {
        tab.import_bar: gr.update(visible=opened is not None),
        tab.import_name: view.import_line(opened.source, bool(opened.refused)) if opened else Html(""),
        tab.import_button: gr.update(interactive=opened is not None and opened.can_be_imported),
    }


def _source(scene: Scene, source: SourceForm) -> Updates:
    opened = scene.view.opened
    return {
        source.format: gr.update(value=opened.format if opened else "auto"),
        source.name: gr.update(placeholder=Path(opened.source).stem if opened else "my-rows"),
        source.hub: gr.update(visible=opened is not None and opened.hub),
        **_mapping(scene, source, opened),
    }


def _mapping(scene: Scene, source: SourceForm, opened: OpenedSource | None) -> Updates:
    """The frame and a dropdown for each part of the format in use."""
    parts = scene.workspace.studio.data.format_parts(opened.format_in_use) if opened and opened.names else ()
    updates: dict[Any, Any] = {source.mapping: gr.update(visible=bool(parts))}
    for index in range(PARTS):
        if opened is None or index >= len(parts):
            updates[source.parts[index]] = gr.update(visible=False, choices=[], value=None)
            continue
        choices = [("found by name", ""), *((name, name) for name in opened.names)]
        updates[source.parts[index]] = gr.update(
            visible=True, label=parts[index], choices=choices, value=opened.columns.get(parts[index], "")
        )
    return updates


def _mixture(scene: Scene, mixture: MixtureForm) -> Updates:
    known = scene.world.datasets
    sources = [source for source in scene.workspace.draft["data.sources"] if source["name"] in known]
    several = len(sources) > 1
    return {
        mixture.chosen: gr.update(choices=list(known), value=[source["name"] for source in sources]),
        **{mixture.weights[index]: _weight(sources, index, visible=several) for index in range(WEIGHTS)},
        mixture.mix_by: gr.update(visible=several),
    }


def _weight(sources: Sequence[Mapping[str, Any]], index: int, *, visible: bool) -> Any:
    if index >= len(sources):
        return gr.update(visible=False)
    source = sources[index]
    return gr.update(visible=visible, label=f"Weight of {source['name']}", value=fields.as_text(source["weight"]))


def _tokens(scene: Scene) -> Html:
    """The tokens of what this tab looks at: never those of another set than the rows beside them."""
    tokens = scene.workspace.tokens
    if scene.view.opened is not None:
        return token_view.import_first(scene.view.opened.source)
    if (progress := tokens.progress) is not None:
        return token_view.counting(progress)
    if tokens.problems:
        return error_card(tokens.problems, "The tokens could not be counted")
    if tokens.report is None or tokens.sets != _chosen(scene):
        return token_view.not_counted(bool(_chosen(scene)))
    return token_view.token_page(tokens.report, tokens.sets, current=scene.workspace.counted() is not None)


def _count_button(scene: Scene) -> Any:
    return gr.update(visible=scene.view.opened is None, interactive=bool(_chosen(scene)))


def _findings(scene: Scene, tab: DataTab) -> Updates:
    """The findings, a tick for each that would keep a run from starting, and the remedies there are."""
    report, chosen = scene.workspace.tokens.report, _chosen(scene)
    hidden = gr.update(visible=False)
    if scene.view.opened is not None:
        return {
            tab.findings: token_view.import_first(scene.view.opened.source),
            **dict.fromkeys((tab.accept, tab.remedies, tab.clean), hidden),
        }
    if report is None or scene.workspace.tokens.sets != chosen:
        return {
            tab.findings: token_view.not_counted(bool(chosen)),
            **dict.fromkeys((tab.accept, tab.remedies, tab.clean), hidden),
        }
    errors = [finding.name for finding in report.findings if finding.severity == "error"]
    titles = scene.workspace.studio.data.remedy_titles()
    offered = {finding.remedy: titles[finding.remedy] for finding in report.findings if finding.remedy in titles}
    accepted = [name for name in scene.workspace.draft["data.accepted"] if name in errors]
    return {
        tab.findings: view.findings_table(report.findings, chosen),
        tab.accept: gr.update(
            visible=bool(errors), choices=[(name.replace("-", " "), name) for name in errors], value=accepted
        ),
        tab.remedies: gr.update(
            visible=bool(offered), choices=[(title, name) for name, title in offered.items()], value=[]
        ),
        tab.clean: gr.update(visible=bool(offered)),
    }


def _set_names(scene: Scene) -> list[tuple[str, str]]:
    return [(f"{report.name}, {plural(report.rows, 'row')}", report.name) for report in scene.world.datasets.values()]


def _set_facts(scene: Scene, name: str) -> list[str]:
    report = scene.world.datasets[name]
    chosen = ["The next run is to learn from it."] if name in _chosen(scene) else []
    gone = f"{plural(report.rows, 'row')} with what was cleaned in them; {report.source_file} stays where it is."
    return [gone, *chosen, *scene.workspace.studio.references.to_set(name)]


def _delete_set(scene: Scene, name: str) -> None:
    draft = scene.workspace.draft
    scene.workspace.studio.data.remove(name)
    draft.change({"data.sources": [one for one in draft["data.sources"] if one["name"] != name]})


SETS = Deletable("data set", _set_names, _set_facts, _delete_set)


def _ticks(label: str, info: str, elem_id: str) -> gr.CheckboxGroup:
    return gr.CheckboxGroup([], label=label, info=info, visible=False, elem_id=elem_id, interactive=True)
