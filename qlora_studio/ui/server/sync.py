"""From state to page, in one way: every slot is asked what it shows, and only what changed is sent.

The clock does it, and so does every event after its action. Nothing else writes into the page.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.blocks import Block

from qlora_studio.ui.server.messages import reports_errors
from qlora_studio.ui.server.view import View
from qlora_studio.ui.server.workspace import Workspace
from qlora_studio.ui.server.world import World

Updates = Mapping[Block, Any]
"""What components show from now on: a value, or an update of their properties."""
CONFIRM_SECONDS = 1.0
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a slot may look at: what every tab shares, the world at this tick, and what this tab looks at."""

    workspace: Workspace
    world: World
    view: View


@dataclass(frozen=True, slots=True)
class Slot:
    """Components that follow the state together."""

    components: Sequence[Block]
    show: Callable[[Scene], Updates]
    mark: Callable[[Scene], object] | None = None
    """Something cheap that differs whenever `show` would; `show` itself where there is nothing cheaper."""
    part: str = ""
    """Tells slots of the same component apart."""
    confirmed: bool = True
    """Whether it is sent a second time; not for what a person may have ticked or typed since."""

    @property
    def name(self) -> str:
        return "+".join([*(str(component._id) for component in self.components), self.part])


def slot(component: Block, show: Callable[[Scene], Any], mark: Callable[[Scene], object] | None = None) -> Slot:
    """A slot of a single component."""
    return Slot((component,), lambda scene: {component: show(scene)}, mark)


def mark_of(value: object) -> int:
    """A small mark of what is shown."""
    return hash(repr(value))


def changes(scene: Scene, slots: Sequence[Slot]) -> dict[Block, Any]:
    """What has changed since this tab was last told, which from now on it is taken to show."""
    updates: dict[Block, Any] = {}
    for one, mark, shown in _changed(scene, slots):
        updates = merged(updates, shown if shown is not None else one.show(scene))
        again = scene.view.shown.get(one.name) == mark
        scene.view.shown[one.name] = mark
        if again or not one.confirmed:
            scene.view.sent.pop(one.name, None)
        else:
            scene.view.sent[one.name] = time.monotonic()
    return updates


def has_changes(scene: Scene, slots: Sequence[Slot]) -> bool:
    """Whether there is anything that this tab was not told yet."""
    return next(_changed(scene, slots), None) is not None


def _changed(scene: Scene, slots: Sequence[Slot]) -> Iterator[tuple[Slot, int, Updates | None]]:
    """The slots that differ from what the tab shows, with their new marks, and what they show where that is known."""
    for one in slots:
        shown = one.show(scene) if one.mark is None else None
        mark = mark_of(one.mark(scene) if one.mark is not None else list((shown or {}).values()))
        if scene.view.shown.get(one.name) != mark or _is_due(scene.view, one.name):
            yield one, mark, shown


def _is_due(view: View, name: str) -> bool:
    """Whether a slot is to be sent again. Answers to two events that ran at once may reach the browser in the wrong
    order, and the older one would stay; so what changed is confirmed once, a moment later.
    """
    sent = view.sent.get(name)
    return sent is not None and time.monotonic() - sent > CONFIRM_SECONDS


def merged(first: Updates, second: Updates) -> dict[Block, Any]:
    """Both together; of a component that both update, every property."""
    both = dict(first)
    for component, update in second.items():
        before: Any = both.get(component)
        both[component] = {**before, **update} if _is_update(before) and _is_update(update) else update
    return both


def _is_update(value: object) -> bool:
    return isinstance(value, dict) and value.get("__type__") == "update"


def components_of(slots: Sequence[Slot]) -> list[Block]:
    """Every component of these slots, once."""
    return list(dict.fromkeys(component for one in slots for component in one.components))


class Page:
    """The slots of the whole page, and what connects a person's events with them."""

    def __init__(self, workspace: Workspace, view: gr.State, slots: Sequence[Slot], live: Sequence[Slot]) -> None:
        self.workspace, self.view = workspace, view
        self.slots = slots
        """What changes now and then."""
        self.live = live
        """What changes with every tick while something is at work."""
        self.components = components_of([*live, *slots])

    def on(
        self,
        trigger: Callable[..., Any],
        action: Callable[..., Updates | None],
        inputs: Sequence[Block] = (),
        also: Sequence[Block] = (),
        **options: Any,
    ) -> Any:
        """After the event the action runs, with the tab's view and the inputs; then the page follows.

        What the action returns is shown as well; `also` are components of it that no slot holds. Returns Gradio's event.
        """

        @reports_errors
        def handle(view: View, *values: Any) -> Any:
            more = action(view, *values) or {}
            self.workspace.forget_world()
            return merged(self.follow(view), more) or gr.skip()

        return self._connect(trigger, handle, inputs, also, options)

    def on_row(self, trigger: Callable[..., Any], action: Callable[[View, str], None]) -> None:
        """The same for a click into a table: the action gets the first cell of the row."""

        @reports_errors
        def handle(view: View, event: gr.SelectData) -> Any:
            action(view, str(event.row_value[0]))
            return self.follow(view) or gr.skip()

        self._connect(trigger, handle, (), (), {})

    def stream(
        self,
        trigger: Callable[..., Any],
        action: Callable[..., Iterator[Updates]],
        inputs: Sequence[Block],
        **options: Any,
    ) -> None:
        """The same for an action that goes on for a while: the page follows after each of its updates."""

        @reports_errors
        def handle(view: View, *values: Any) -> Iterator[Any]:
            for more in action(view, *values):
                yield merged(self.follow(view), more) or gr.skip()

        self._connect(trigger, handle, inputs, (), options)

    def on_clock(self, tick: Callable[..., Any], signal: gr.Textbox) -> None:
        """Has the page follow by itself, past the queue: one request a tick, not two.

        Gradio makes every output of an event anew, changed or not, so a tick has few: what is live, and `signal`, whose
        change brings the rest. A page that nothing happens on costs next to nothing.
        """

        @reports_errors
        def ask(view: View) -> Any:
            return self.follow_live(view, signal) or gr.skip()

        @reports_errors
        def bring(view: View) -> Any:
            return self.follow(view) or gr.skip()

        tick(ask, [self.view], [signal, *components_of(self.live)], **{**QUIET, "queue": False})
        self._connect(signal.change, bring, (), (), {"queue": False})

    def follow_live(self, view: View, signal: gr.Textbox) -> dict[Block, Any]:
        """What has changed of what is live, and a new value of the signal where something else has."""
        with view.lock:
            scene = self._scene(view)
            news: dict[Block, Any] = {signal: str(time.monotonic_ns())} if has_changes(scene, self.slots) else {}
            return {**changes(scene, self.live), **news}

    def follow(self, view: View) -> dict[Block, Any]:
        """What has changed for this tab since it was last told."""
        with view.lock:
            return changes(self._scene(view), [*self.live, *self.slots])

    def _scene(self, view: View) -> Scene:
        self.workspace.settle()
        return Scene(self.workspace, self.workspace.world(), view)

    def _connect(
        self,
        trigger: Callable[..., Any],
        handle: Callable[..., Any],
        inputs: Sequence[Block],
        also: Sequence[Block],
        options: Mapping[str, Any],
    ) -> Any:
        outputs = list(dict.fromkeys([*self.components, *also]))
        return trigger(handle, [self.view, *inputs], outputs, **{**QUIET, **options})
